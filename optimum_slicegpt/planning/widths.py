"""The width of the stream at every site and the number of neurons, determined before any weight is read."""

from dataclasses import dataclass

from transformers.utils import logging

from ..configuration import SliceGPTConfig
from ..modeling.decoder import Decoder, empty_model
from ..modeling.families import check_equal_widths, family_of, num_neurons
from .sizes import parameter_size
from .solver import TOLERANCE, Solver


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SlicePlan:
    """
    A plan of the widths and the number of neurons that a sliced model keeps.

    Args:
        hidden_size (`int`): D of the dense model.
        widths (`tuple[int, ...]`): width at every site, from the first norm to the final one.
        tied (`bool`): whether the head keeps sharing the embedding's matrix, with a projection on either side.
        shortcuts (`bool`): whether every site has a basis of its own. Without shortcuts, all widths are the same.
        neurons (`int`, *optional*): neurons that every MLP keeps; `None` for all.
    """

    hidden_size: int
    widths: tuple[int, ...]
    tied: bool = False
    shortcuts: bool = True
    neurons: int | None = None

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
                nothing would be left; `parameter_reduction` is out of reach; `embeddings="tied"` and the model's are
                not.

        Examples:
            >>> from transformers import LlamaConfig
            >>> from optimum_slicegpt import SliceGPTConfig
            >>> dense = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=2)
            >>> SlicePlan.from_config(SliceGPTConfig(sparsity=0.25), dense)
            SlicePlan(hidden_size=576, widths=(432, 432, 432, 432, 432), tied=False, shortcuts=False, neurons=None)
            >>> SlicePlan.from_config(SliceGPTConfig(parameter_reduction=0.2, rotation="per_block"), dense).widths
            (408, 408, 408, 408, 576)
        """
        hidden_size = model_config.hidden_size
        family = family_of(model_config)
        shortcuts = config.rotation == "per_block"
        if config.schedule != "uniform" and family.moe:
            raise ValueError(
                f"schedule={config.schedule!r}, but the MLPs of a {model_config.model_type} model are mixtures of "
                "experts, which keep all their neurons; leave schedule out."
            )
        neurons = remaining_neurons(config, model_config)
        if config.widths is not None:
            sites = family.num_sites(model_config)
            if len(config.widths) != sites:
                raise ValueError(f"widths has {len(config.widths)} entries; this model has {sites} sites.")
            if max(config.widths) > hidden_size:
                raise ValueError(f"widths holds {max(config.widths)}, more than the hidden size, {hidden_size}.")
            tied = keeps_tie(config.embeddings, model_config, config.widths)
            check_equal_widths(model_config, config.widths, tied)
            return cls(hidden_size, tuple(config.widths), tied, shortcuts, neurons)
        if config.parameter_reduction is not None:
            return cls._from_reduction(config, model_config, neurons)
        width = round_down(hidden_size, config.sparsity, config.round_to)
        if width < 1:
            raise ValueError(
                f"sparsity={config.sparsity} leaves no dimension of {hidden_size} when rounded down to a multiple of "
                f"round_to={config.round_to}; lower either."
            )
        last = width if config.slice_head or not shortcuts else hidden_size
        tied = keeps_tie(config.embeddings, model_config, (width, last))
        widths = [hidden_size] * family.num_sites(model_config)
        for group in sliced_sites(config, model_config, tied):
            for site in group:
                widths[site] = width
        return cls(hidden_size, tuple(widths), tied, shortcuts, neurons)

    @classmethod
    def _from_reduction(cls, config, model_config, neurons):
        """Determines the plan that reaches a `parameter_reduction`, with the given number of neurons or the best."""
        hidden_size, shortcuts = model_config.hidden_size, config.rotation == "per_block"
        # With "auto", the smaller kind of head depends on the widths, which are not known yet: a tied head stays tied.
        stays = config.embeddings == "auto" and model_config.tie_word_embeddings
        tied = stays or keeps_tie(config.embeddings, model_config, ())
        groups = sliced_sites(config, model_config, tied)
        if config.parameter_reduction == 0 and neurons is None:
            return cls(hidden_size, (hidden_size,) * family_of(model_config).num_sites(model_config), tied, shortcuts)
        model, all_neurons = empty_model(model_config), num_neurons(model_config)
        size, dense = parameter_size(Decoder(model), tied), model.num_parameters()
        chooses_neurons = config.refit and config.mlp_sparsity is None and not family_of(model_config).moe
        if neurons is None and not chooses_neurons:
            neurons = all_neurons
        solver = Solver(size, dense, hidden_size, groups, shortcuts, neurons, config.round_to)
        widths, neurons = solver.solve(config.parameter_reduction)
        found = 1 - size(widths, neurons, shortcuts) / dense
        if abs(found - config.parameter_reduction) > TOLERANCE:
            logger.warning(
                f"parameter_reduction={config.parameter_reduction}: the nearest that whole dimensions allow is "
                f"{found:.2%}."
            )
        uneven = sorted({width for width in widths if width % config.round_to and width != hidden_size})
        if uneven:
            logger.warning(
                f"Widths of {', '.join(map(str, uneven))} are no multiples of round_to={config.round_to}, of which "
                f"none come near enough to parameter_reduction={config.parameter_reduction}. Give widths, or sparsity."
            )
        return cls(hidden_size, tuple(widths), tied, shortcuts, neurons if neurons < all_neurons else None)

    def num_parameters(self, model) -> int:
        """
        Counts the parameters of the sliced model from the shapes of the dense model.

        Args:
            model (`PreTrainedModel`): the dense causal language model, whose tensors may be on `meta`.

        Returns:
            `int`: the number that `num_parameters()` of the sliced model will return.
        """
        return parameter_size(Decoder(model), self.tied)(self.widths, self.neurons, self.shortcuts)


def round_down(size: int, sparsity: float, round_to: int) -> int:
    """Computes the rest of a size, rounded down to a multiple of `round_to`. With a sparsity of 0, it is the size."""
    left = int(round((1 - sparsity) * size, 6))  # In floating point, 0.1 of 40 is 3.9999999999999996.
    return left - left % round_to if sparsity else left


def remaining_neurons(config: SliceGPTConfig, model_config) -> int | None:
    """
    Computes the number of neurons that `mlp_sparsity` leaves in each MLP.

    Args:
        config ([`SliceGPTConfig`]): has `mlp_sparsity`.
        model_config (`PreTrainedConfig`): of the dense model.

    Returns:
        `int` or `None`: `None` if `mlp_sparsity` is not given or 0.

    Raises:
        ValueError: no neurons are left, or the MLPs are mixtures of experts.
    """
    if not config.mlp_sparsity:
        return None
    if family_of(model_config).moe:
        raise ValueError(
            f"mlp_sparsity={config.mlp_sparsity}, but the MLPs of a {model_config.model_type} model are mixtures of "
            "experts, which keep all their neurons; leave mlp_sparsity out."
        )
    all_neurons = num_neurons(model_config)
    neurons = round_down(all_neurons, config.mlp_sparsity, config.round_to)
    if neurons < 1:
        raise ValueError(
            f"mlp_sparsity={config.mlp_sparsity} leaves no neuron of {all_neurons} when rounded down to a multiple of "
            f"round_to={config.round_to}; lower either."
        )
    return neurons


def sliced_sites(config: SliceGPTConfig, model_config, tied: bool) -> list[list[int]]:
    """
    Returns the sites that are sliced, in groups that must be equally wide. Sites that share a basis are one group.

    Args:
        config ([`SliceGPTConfig`]): has `rotation` and `slice_head`.
        model_config (`PreTrainedConfig`): of the dense model.
        tied (`bool`): whether the head shares the embedding's matrix.
    """
    family = family_of(model_config)
    sites = family.num_sites(model_config)
    if config.rotation != "per_block":
        return [list(range(sites))]
    groups, last = {site: [site] for site in range(sites)}, sites - 1
    for first, second, reason in family.equal_sites(model_config, tied):
        if second == last and not config.slice_head and (config.sparsity or config.parameter_reduction):
            logger.warning_once(
                f"Site {first} is not sliced: it must be as wide as site {second}, which the head reads, because "
                f"{reason}. slice_head=True slices both."
            )
        groups[first] += groups.pop(second)
    return [group for group in groups.values() if config.slice_head or last not in group]


def keeps_tie(embeddings: str, model_config, widths) -> bool:
    """
    Determines whether the head keeps sharing the embedding's matrix.

    Args:
        embeddings (`str`): `"tied"`, `"sliced"`, or `"auto"` for the choice that has fewer parameters.
        model_config (`PreTrainedConfig`): of the dense model.
        widths (`Sequence[int]`): one per site.

    Raises:
        ValueError: `"tied"` is asked for, and the dense model's head has a matrix of its own.
    """
    tied = bool(model_config.tie_word_embeddings)
    if embeddings == "tied" and not tied:
        raise ValueError(
            "embeddings='tied', but this model's head has a matrix of its own; use embeddings='auto' or 'sliced'."
        )
    if embeddings != "auto" or not tied:
        return tied and embeddings == "tied"
    positions = model_config.max_position_embeddings if len(family_of(model_config).embeddings) > 1 else 0
    hidden_size, vocab_size = model_config.hidden_size, model_config.vocab_size
    shared = hidden_size * (vocab_size + positions + widths[0] + widths[-1])
    return shared <= (vocab_size + positions) * widths[0] + vocab_size * widths[-1]
