"""Width of the stream at every site, and what it costs, solved before any weight changes."""

from dataclasses import dataclass

from transformers.utils import logging

from .configuration import SliceGPTConfig
from .modeling.families import check_equal_widths, family_of
from .reduction import TOLERANCE, Solver
from .sizes import mlp_inner, on_meta, parameter_size


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SlicePlan:
    """
    What a run will keep.

    Args:
        hidden_size (`int`): D of the dense model.
        widths (`tuple[int, ...]`): width at every site, from the first norm to the final one.
        tied (`bool`): whether the head goes on sharing the embedding's matrix, with a projection on either side.
        shortcuts (`bool`): whether sites differ in their basis. Without shortcuts, all widths are the same.
        inner (`int`, *optional*): neurons kept in every MLP; `None` leaves the MLPs as they are.
    """

    hidden_size: int
    widths: tuple[int, ...]
    tied: bool = False
    shortcuts: bool = True
    inner: int | None = None

    @classmethod
    def from_config(cls, config: SliceGPTConfig, model_config) -> "SlicePlan":
        """
        Solves the widths for a model.

        Where a family needs sites to be equally wide, all of them get the width of the widest.

        Args:
            config ([`SliceGPTConfig`]): gives `widths`, `sparsity` or `parameter_reduction`, and what goes with them.
            model_config (`PreTrainedConfig`): of the dense model.

        Raises:
            ValueError: the family cannot be sliced, or not the inside of its MLPs; `widths` do not fit the model;
                nothing would be left; `parameter_reduction` is out of reach; `embeddings="tied"` and they are not.
        """
        hidden_size = model_config.hidden_size
        family = family_of(model_config)
        shortcuts = config.rotation == "per_block"
        if config.schedule == "energy" and family.moe:
            raise ValueError(
                f"schedule='energy', but the MLPs of a {model_config.model_type} model are mixtures of experts, which "
                "keep all their neurons; leave schedule out."
            )
        inner = neurons_kept(config, model_config)
        if config.widths is not None:
            sites = family.num_sites(model_config)
            if len(config.widths) != sites:
                raise ValueError(f"widths has {len(config.widths)} entries; this model has {sites} sites.")
            if max(config.widths) > hidden_size:
                raise ValueError(f"widths holds {max(config.widths)}, more than the hidden size, {hidden_size}.")
            tied = keeps_tie(config.embeddings, model_config, config.widths)
            check_equal_widths(model_config, config.widths, tied)
            return cls(hidden_size, tuple(config.widths), tied, shortcuts, inner)
        if config.parameter_reduction is not None:
            return cls._of_reduction(config, model_config, inner)
        width = rounded_down(hidden_size, config.sparsity, config.round_to)
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
        return cls(hidden_size, tuple(widths), tied, shortcuts, inner)

    @classmethod
    def _of_reduction(cls, config, model_config, inner):
        hidden_size, shortcuts = model_config.hidden_size, config.rotation == "per_block"
        # "auto" cannot ask which is smaller before there are widths.
        stays = config.embeddings == "auto" and model_config.tie_word_embeddings
        tied = stays or keeps_tie(config.embeddings, model_config, ())
        groups = sliced_sites(config, model_config, tied)
        if config.parameter_reduction == 0 and inner is None:
            return cls(hidden_size, (hidden_size,) * family_of(model_config).num_sites(model_config), tied, shortcuts)
        model, neurons = on_meta(model_config), mlp_inner(model_config)
        size, dense = parameter_size(model, tied), model.num_parameters()
        together = config.refit and config.mlp_sparsity is None and not family_of(model_config).moe
        if inner is None and not together:
            inner = neurons
        solver = Solver(size, dense, hidden_size, groups, shortcuts, inner, config.round_to)
        widths, inner = solver.solve(config.parameter_reduction)
        found = 1 - size(widths, inner, shortcuts) / dense
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
        return cls(hidden_size, tuple(widths), tied, shortcuts, inner if inner < neurons else None)

    def num_parameters(self, model) -> int:
        """
        Parameters of the sliced model, counted from the shapes of the dense one.

        Args:
            model (`PreTrainedModel`): the dense causal language model; `meta` tensors will do.

        Returns:
            `int`: the number that `sliced.num_parameters()` will give.
        """
        return parameter_size(model, self.tied)(self.widths, self.inner, self.shortcuts)


def rounded_down(size: int, sparsity: float, round_to: int) -> int:
    """What is left of a size, as a multiple of `round_to` unless all of it is."""
    left = int(round((1 - sparsity) * size, 6))  # 0.1 of 40 comes out as 3.9999999999999996
    return left - left % round_to if sparsity else left


def neurons_kept(config: SliceGPTConfig, model_config) -> int | None:
    """
    Neurons that `mlp_sparsity` leaves in each MLP; `None` where it is not given or 0.

    Raises:
        ValueError: none are left, or the MLPs are mixtures of experts.
    """
    if not config.mlp_sparsity:
        return None
    if family_of(model_config).moe:
        raise ValueError(
            f"mlp_sparsity={config.mlp_sparsity}, but the MLPs of a {model_config.model_type} model are mixtures of "
            "experts, which keep all their neurons; leave mlp_sparsity out."
        )
    neurons = mlp_inner(model_config)
    inner = rounded_down(neurons, config.mlp_sparsity, config.round_to)
    if inner < 1:
        raise ValueError(
            f"mlp_sparsity={config.mlp_sparsity} leaves no neuron of {neurons} when rounded down to a multiple of "
            f"round_to={config.round_to}; lower either."
        )
    return inner


def sliced_sites(config: SliceGPTConfig, model_config, tied: bool) -> list[list[int]]:
    """
    The sites that a run narrows, in groups that must be equally wide. All are one group where they share a basis.

    Args:
        config ([`SliceGPTConfig`]): gives `rotation` and `slice_head`.
        model_config (`PreTrainedConfig`): of the dense model.
        tied (`bool`): whether the head shares the embedding's matrix.
    """
    family = family_of(model_config)
    sites = family.num_sites(model_config)
    if config.rotation == "shared":
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
    Whether a head that is tied to the embedding stays so.

    Args:
        embeddings (`str`): `"tied"`, `"sliced"`, or `"auto"` for what has fewer parameters.
        model_config (`PreTrainedConfig`): of the dense model.
        widths (`Sequence[int]`): one per site.

    Raises:
        ValueError: `"tied"` is asked for and the dense model is not.
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
