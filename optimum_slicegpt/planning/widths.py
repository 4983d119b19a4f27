"""The width of the stream at every site and the number of neurons, determined before any weight is read."""

from dataclasses import dataclass, replace

from transformers.utils import logging

from ..configuration import SliceGPTConfig
from ..modeling.checks import check_dense
from ..modeling.decoder import Decoder, empty_model
from ..modeling.families import check_equal_widths, family_of, num_neurons
from ..modeling.stock import stock_hidden_size
from .memory import sized_for_memory
from .rounding import SMALLEST_STEP, round_down
from .search import predict_share
from .settings import (
    check_embeddings,
    check_experts,
    check_post_norms,
    check_stock_size,
    check_widths,
    choose_embeddings,
    fits_stock,
    nearest_stock_size,
    remaining_neurons,
    sliced_sites,
    width_step,
    with_wide_entry,
)
from .sizes import parameter_size
from .solver import TOLERANCE, solve


logger = logging.get_logger(__name__)

LEAST_REST = 0.25
"""Share of a block's width or neurons below which a `parameter_reduction` is refused."""


@dataclass(frozen=True)
class SlicePlan:
    """
    A plan of the widths and the number of neurons that a sliced model keeps.

    Args:
        hidden_size (`int`): D of the dense model.
        widths (`tuple[int, ...]`): width at every site, from the first norm to the final one.
        embeddings (`str`):
            `"sliced"` where the head has a matrix of its own, as wide as the stream. `"tied"` where embeddings and
            head keep D dimensions, with projections behind and before. `"narrow"` where they share a matrix that is as
            narrow as the stream.
        shortcuts (`bool`): whether every site has a basis of its own. Without shortcuts, all widths are the same.
        neurons (`int`, *optional*): neurons that every MLP keeps; `None` for all.
        stock_size (`int`, *optional*):
            `hidden_size` of the stock class that holds the result; `None` for a sliced class. It is the width, or one
            more where LayerNorms subtract a mean.
    """

    hidden_size: int
    widths: tuple[int, ...]
    embeddings: str = "sliced"
    shortcuts: bool = True
    neurons: int | None = None
    stock_size: int | None = None

    @classmethod
    def from_config(cls, config: SliceGPTConfig, model_config) -> "SlicePlan":
        """
        Determines the plan for a model.

        Where a family needs sites to be equally wide, all of them get the width of the widest.

        Args:
            config ([`SliceGPTConfig`]): says how to slice, and how much to delete.
            model_config (`PreTrainedConfig`): of the dense model.

        Raises:
            ValueError: the family cannot be sliced, or its MLPs cannot lose neurons; `widths` do not fit the model;
                nothing would be left; `parameter_reduction` is out of reach; `embeddings` does not fit the model;
                `architecture="stock"` and no stock class can hold the result.

        Examples:
            >>> from transformers import LlamaConfig
            >>> from optimum_slicegpt import SliceGPTConfig
            >>> dense = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=2)
            >>> SlicePlan.from_config(SliceGPTConfig(sparsity=0.25), dense).widths
            (416, 416, 416, 416, 416)
            >>> SlicePlan.from_config(SliceGPTConfig(parameter_reduction=0.2, rotation="per_block"), dense).widths
            (408, 408, 408, 408, 576)
        """
        check_dense(model_config)
        if config.max_loss is not None:
            raise ValueError(
                f"max_loss={config.max_loss}: the size is found by slicing and measuring, which needs the whole model "
                "in memory; give a size, or use quantize_model, or compress without --stream."
            )
        if config.fit_memory is not None:
            return cls._fitting(config, model_config)
        family = family_of(model_config)
        if family.wide_entry:
            config = with_wide_entry(config, family.wide_entry)
        if isinstance(config.widths, int):
            config = replace(config, widths=[config.widths] * family.num_sites(model_config))
        check_experts(config, model_config)
        check_embeddings(config, model_config)
        check_post_norms(config, model_config)
        if config.architecture != "sliced" and config.stock_obstacle() is None:
            try:
                return cls._stock(config, model_config)
            except ValueError:
                if config.architecture == "stock":
                    raise
        return cls._sliced(config, model_config)

    def check_rest(self, config: SliceGPTConfig, model_config) -> None:
        """
        Checks that a model survives, and warns where its size is not what was asked for. A run calls this before it
        begins; who only looks at sizes may look at any.

        Args:
            config ([`SliceGPTConfig`]), model_config (`PreTrainedConfig`): those of [`SlicePlan.from_config`].

        Raises:
            ValueError: a `parameter_reduction` leaves less than `LEAST_REST` of the dimensions or neurons. Where other
                settings say so, that is a warning.
        """
        asked = "parameter_reduction" if config.fit_memory is None else "fit_memory"
        asked = f"{asked}={getattr(config, asked)}"
        config = sized_for_memory(config, model_config)
        if config.parameter_reduction:
            self._warn_of_sizes(config, model_config)
        for rest, all_, name in self._rests(model_config):
            if rest >= LEAST_REST * all_:
                continue
            left = f"{rest} of {all_} {name}"
            if config.parameter_reduction is not None and (config.mlp_sparsity is None or name == "dimensions"):
                raise ValueError(
                    f"{asked} leaves {left}, less than a quarter, which destroys a model. Delete less, or give "
                    "widths, sparsity or mlp_sparsity to have it nevertheless."
                )
            logger.warning_once(f"The settings leave {left}, less than a quarter, which destroys most models.")

    def least_rest(self, config: SliceGPTConfig, model_config) -> float:
        """Returns the least share that is left of what a search varies: dimensions, and neurons unless set."""
        rests = self._rests(model_config)[: None if config.mlp_sparsity is None else 1]
        return min(rest / all_ for rest, all_, _ in rests)

    def _rests(self, model_config):
        rests = [(min(self.widths), self.hidden_size, "dimensions")]
        if self.neurons is not None:
            rests.append((self.neurons, num_neurons(model_config), "neurons"))
        return rests

    def _warn_of_sizes(self, config, model_config):
        """Warns where no sizes come near to a `parameter_reduction`, or none that are multiples of `round_to`."""
        reduction, model = config.parameter_reduction, empty_model(model_config)
        found = 1 - self.num_parameters(model) / model.num_parameters()
        if not 0 <= found - reduction <= TOLERANCE:
            logger.warning(f"parameter_reduction={reduction}: the nearest that whole dimensions allow is {found:.2%}.")
        wanted = config.round_to or min(width_step(config, model_config), SMALLEST_STEP)
        uneven = sorted({width for width in self.stored_widths if width % wanted and width != self.hidden_size})
        if uneven:
            logger.warning(
                f"Widths of {', '.join(map(str, uneven))} are no multiples of round_to={wanted}, of which none come "
                f"near enough to parameter_reduction={reduction}. Give widths, or sparsity."
            )

    @classmethod
    def _fitting(cls, config, model_config):
        """Determines the plan of a model that fits into memory."""
        sized, model = sized_for_memory(config, model_config), empty_model(model_config)
        about = f"fit_memory={config.fit_memory!r} with context={config.context}"
        try:
            plan = cls.from_config(sized, model_config)
        except ValueError as error:
            raise ValueError(f"{about} cannot be reached: {error}") from error
        if 1 - plan.num_parameters(model) / model.num_parameters() < sized.parameter_reduction:
            raise ValueError(f"{about} cannot be reached: the smallest size is larger; give a shorter context.")
        return plan

    @classmethod
    def _stock(cls, config, model_config):
        """Determines the plan of a model of a stock class."""
        family, hidden_size = family_of(model_config), model_config.hidden_size
        tied = model_config.tie_word_embeddings and config.embeddings != "sliced"
        embeddings = "narrow" if tied else "sliced"
        neurons = remaining_neurons(config, model_config)
        if not any(map(fits_stock(config, model_config), range(1, hidden_size + 1))):
            check_stock_size(config, model_config, hidden_size)
        if config.widths is not None:
            check_widths(config, model_config)
            width = config.widths[0]
            size = stock_hidden_size(family, model_config, width)
        elif config.parameter_reduction is not None:
            try:
                sizes = solve(config, model_config, neurons, embeddings, fits_stock(config, model_config, True))
            except ValueError:  # Neurons alone are not enough.
                sizes = solve(config, model_config, neurons, embeddings, fits_stock(config, model_config))
            (size, *_), neurons = sizes
        else:
            wanted = round_down(hidden_size, config.sparsity, 1)
            size = (nearest_stock_size(config, model_config, wanted) if config.sparsity else None) or wanted
        check_stock_size(config, model_config, size)
        if config.widths is None:
            width = size if size == hidden_size else size - family.layer_norm
        widths = (width,) * family.num_sites(model_config)
        return cls(hidden_size, widths, embeddings, False, neurons, stock_size=size)

    @classmethod
    def _sliced(cls, config, model_config):
        """Determines the plan of a model of a sliced class."""
        hidden_size, shortcuts = model_config.hidden_size, config.rotation == "per_block"
        neurons = remaining_neurons(config, model_config)
        if config.widths is not None:
            check_widths(config, model_config)
            embeddings = choose_embeddings(config, model_config, config.widths)
            check_equal_widths(model_config, config.widths, embeddings == "tied")
            return cls(hidden_size, tuple(config.widths), embeddings, shortcuts, neurons)
        if config.parameter_reduction is not None:
            embeddings = choose_embeddings(config, model_config, None)
            widths, neurons = solve(config, model_config, neurons, embeddings)
            return cls(hidden_size, tuple(widths), embeddings, shortcuts, neurons)
        step = width_step(config, model_config)
        width = round_down(hidden_size, config.sparsity, step)
        if width < 1:
            raise ValueError(
                f"sparsity={config.sparsity} leaves no dimension of {hidden_size} when rounded down to a multiple of "
                f"round_to={step}; lower either."
            )
        last = width if config.slice_head or not shortcuts else hidden_size
        embeddings = choose_embeddings(config, model_config, (width, last))
        widths = [hidden_size] * family_of(model_config).num_sites(model_config)
        for group in sliced_sites(config, model_config, embeddings == "tied"):
            for site in group:
                widths[site] = width
        return cls(hidden_size, tuple(widths), embeddings, shortcuts, neurons)

    @property
    def whole(self) -> bool:
        """Whether every site keeps all dimensions of the stream."""
        return min(self.widths) == self.hidden_size

    @property
    def stored_widths(self) -> tuple[int, ...]:
        """Width of the weights of the result at every site."""
        return self.widths if self.stock_size is None else (self.stock_size,) * len(self.widths)

    def num_parameters(self, model) -> int:
        """
        Counts the parameters of the sliced model from the shapes of the dense model.

        Args:
            model (`PreTrainedModel`): the dense causal language model, whose tensors may be on `meta`.

        Returns:
            `int`: the number that `num_parameters()` of the sliced model will return.
        """
        size = parameter_size(Decoder(model), self.embeddings, self.stock_size is not None)
        return size(self.stored_widths, self.neurons, self.shortcuts)


def sizes_to_try(config: SliceGPTConfig, model_config) -> list[tuple[SliceGPTConfig, SlicePlan]]:
    """
    Lists the sizes among which `max_loss` is searched for: those of every whole percent of `parameter_reduction` that
    leaves enough of a model.

    Args:
        config ([`SliceGPTConfig`]): has `max_loss`.
        model_config (`PreTrainedConfig`): of the dense model.

    Returns:
        `list`: configurations with a `parameter_reduction` and their plans, which differ, from the largest model on.

    Raises:
        ValueError: the model cannot be sliced with these settings.
    """
    found, out_of_reach = [], None
    for percent in range(1, 100):
        sized = replace(config, max_loss=None, parameter_reduction=percent / 100)
        try:
            plan = SlicePlan.from_config(sized, model_config)
        except ValueError as error:
            if found:
                break
            out_of_reach = error
            continue
        if found and plan.least_rest(sized, model_config) < LEAST_REST:
            break
        if not found or plan != found[-1][1]:
            found.append((sized, plan))
    if not found:
        raise out_of_reach
    return found


def likely_plan(config: SliceGPTConfig, model_config) -> SlicePlan:
    """Returns the plan of a configuration; with `max_loss`, of the size from which the search starts."""
    if config.max_loss is None:
        return SlicePlan.from_config(config, model_config)
    start, sizes = predict_share({}, config.max_loss), sizes_to_try(config, model_config)
    return next((plan for sized, plan in sizes[::-1] if sized.parameter_reduction <= start), sizes[0][1])
