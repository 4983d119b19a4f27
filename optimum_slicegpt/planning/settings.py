"""What the settings of a run mean for a model: sites, steps, embeddings, and whether a stock class can hold it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers.utils import logging

from ..configuration import SliceGPTConfig
from ..modeling.families import family_of, num_neurons
from ..modeling.stock import stock_class
from .rounding import default_step, halvings, round_down


logger = logging.get_logger(__name__)


def width_step(config: SliceGPTConfig, model_config) -> int:
    """Returns the number of which widths are multiples."""
    return config.round_to or default_step(model_config.hidden_size)


def neuron_step(config: SliceGPTConfig, model_config) -> int:
    """Returns the number of which numbers of neurons are multiples."""
    return config.round_neurons_to or default_step(num_neurons(model_config))


def check_widths(config: SliceGPTConfig, model_config) -> None:
    """
    Checks the `widths` of a configuration.

    Raises:
        ValueError: there are not as many as sites, or one exceeds the hidden size.
    """
    sites = family_of(model_config).num_sites(model_config)
    if len(config.widths) != sites:
        raise ValueError(f"widths has {len(config.widths)} entries; this model has {sites} sites.")
    if max(config.widths) > model_config.hidden_size:
        raise ValueError(f"widths holds {max(config.widths)}, more than the hidden size, {model_config.hidden_size}.")


def check_experts(config: SliceGPTConfig, model_config) -> None:
    """
    Checks that no neurons are to be deleted from mixtures of experts, or where there are none.

    Raises:
        ValueError: they are, by `schedule` or `mlp_sparsity`.
    """
    given = {"schedule": config.schedule != "uniform", "mlp_sparsity": config.mlp_sparsity}
    for key, deletes in given.items():
        if deletes and family_of(model_config).keeps_neurons:
            raise ValueError(
                f"{key}={getattr(config, key)!r}, but a {model_config.model_type} model keeps all its neurons: its "
                f"MLPs, if it has any, are mixtures of experts or of a fixed size; leave {key} out."
            )


def check_post_norms(config: SliceGPTConfig, model_config) -> None:
    """
    Checks that a method leaves axes near to the dimensions along which norms behind the blocks have their gains.

    Raises:
        ValueError: it does not, by `rotation`, `refit` or `orientation`.
    """
    needed = {"rotation": "shared", "refit": True, "orientation": "pca"}
    for key, value in needed.items():
        if getattr(config, key) != value and family_of(model_config).post_norms:
            raise ValueError(
                f"{key}={getattr(config, key)!r}, but a {model_config.model_type} model has norms behind its blocks, "
                "whose gains no rotation commutes with: they are fitted, along shared axes that lie near to the dense "
                f"dimensions; use {key}={value!r}."
            )


def remaining_neurons(config: SliceGPTConfig, model_config) -> int | None:
    """
    Computes the number of neurons that `mlp_sparsity` leaves in each MLP.

    Args:
        config ([`SliceGPTConfig`]): has `mlp_sparsity`.
        model_config (`PreTrainedConfig`): of the dense model.

    Returns:
        `int` or `None`: `None` if `mlp_sparsity` is not given or 0.

    Raises:
        ValueError: no neurons are left.
    """
    if not config.mlp_sparsity:
        return None
    all_neurons, step = num_neurons(model_config), neuron_step(config, model_config)
    neurons = round_down(all_neurons, config.mlp_sparsity, step)
    if neurons < 1:
        raise ValueError(
            f"mlp_sparsity={config.mlp_sparsity} leaves no neuron of {all_neurons} when rounded down to a multiple of "
            f"round_neurons_to={step}; lower either."
        )
    return neurons


def sliced_sites(config: SliceGPTConfig, model_config, projected: bool) -> list[list[int]]:
    """
    Returns the sites that are sliced, in groups that must be equally wide. Sites that share a basis are one group.

    Args:
        config ([`SliceGPTConfig`]): has `rotation` and `slice_head`.
        model_config (`PreTrainedConfig`): of the dense model.
        projected (`bool`): whether projections lead from the embedding to the stream and back to the head.
    """
    family = family_of(model_config)
    sites = family.num_sites(model_config)
    if config.rotation != "per_block":
        return [list(range(sites))]
    groups, last = {site: [site] for site in range(sites)}, sites - 1
    for first, second, reason in family.equal_sites(model_config, projected):
        if second == last and not config.slice_head and (config.sparsity or config.parameter_reduction):
            logger.warning_once(
                f"Site {first} is not sliced: it must be as wide as site {second}, which the head reads, because "
                f"{reason}. slice_head=True slices both."
            )
        together = next(group for group in groups.values() if first in group)
        if second not in together:
            together += groups.pop(second)
    return [group for group in groups.values() if config.slice_head or last not in group]


# Tied embeddings


def check_embeddings(config: SliceGPTConfig, model_config) -> None:
    """
    Checks that the model has the tie that `embeddings` is about.

    Raises:
        ValueError: `"narrow"` is asked for, and the dense model's head has a matrix of its own.
    """
    if config.embeddings == "narrow" and not model_config.tie_word_embeddings:
        raise ValueError(
            "embeddings='narrow', but this model's head has a matrix of its own; use embeddings='auto', 'tied' or "
            "'sliced'."
        )


def with_wide_entry(config: SliceGPTConfig, reason: str) -> SliceGPTConfig:
    """
    Returns the settings for a model whose table keeps its width, with a projection between it and the stream.

    Args:
        config ([`SliceGPTConfig`]): how to slice.
        reason (`str`): why the table cannot be narrower: ends the messages.

    Raises:
        ValueError: they ask for a stock class, or for narrow embeddings.
    """
    wanted = {"architecture": ("auto", "sliced"), "embeddings": ("auto", "tied")}
    for key, values in wanted.items():
        if getattr(config, key) not in values:
            raise ValueError(f"{key}={getattr(config, key)!r}, but this model's table keeps its width: {reason}.")
    return replace(config, architecture="sliced", embeddings="tied")


def narrow_obstacle(config: SliceGPTConfig, model_config, keeps_width: bool = False) -> str | None:
    """
    Says why a matrix that embedding and head share cannot become as narrow as the stream.

    Args:
        config ([`SliceGPTConfig`]): how to slice.
        model_config (`PreTrainedConfig`): of the dense model.
        keeps_width (`bool`): whether the stream keeps all dimensions, as it may in a stock class.
    """
    if config.rotation == "per_block":
        return "rotation='per_block' gives the first and the last site axes of their own; use rotation='shared'"
    if config.orientation == "random":
        return (
            "orientation='random' turns the axes in which the final norm is diagonal; use orientation='pca', or "
            "embeddings='sliced'"
        )
    if family_of(model_config).layer_norm and not keeps_width:
        return (
            "a LayerNorm subtracts a mean, and has no gains for which one narrow matrix serves embedding and head; "
            "use embeddings='tied' or 'sliced', or delete neurons alone with mlp_sparsity"
        )
    return None


def choose_embeddings(config: SliceGPTConfig, model_config, widths: Sequence[int] | None) -> str:
    """
    Chooses what becomes of the embeddings in a sliced class.

    Args:
        config ([`SliceGPTConfig`]): has `embeddings`.
        model_config (`PreTrainedConfig`): of the dense model.
        widths (`Sequence[int]`, *optional*): one per site, if they are known. A tied head stays tied if not.

    Returns:
        `str`: `"narrow"`, `"tied"` or `"sliced"`.

    Raises:
        ValueError: `"narrow"` is asked for and cannot be.
    """
    if config.embeddings == "narrow":
        obstacle = narrow_obstacle(config, model_config)
        if obstacle:
            raise ValueError(f"embeddings='narrow': {obstacle}.")
    if config.embeddings != "auto" or not model_config.tie_word_embeddings:
        return "sliced" if config.embeddings == "auto" else config.embeddings
    if widths is None:
        return "tied"
    positions = model_config.max_position_embeddings if len(family_of(model_config).embeddings) > 1 else 0
    hidden_size, vocab_size = model_config.hidden_size, model_config.vocab_size
    shared = hidden_size * (vocab_size + positions + widths[0] + widths[-1])
    return "tied" if shared <= (vocab_size + positions) * widths[0] + vocab_size * widths[-1] else "sliced"


# Stock classes


def fits_stock(config: SliceGPTConfig, model_config, everywhere: bool = False) -> Callable[[int], bool]:
    """
    Returns a function that says whether a stock class of some hidden size can hold the result.

    Args:
        config ([`SliceGPTConfig`]): how to slice.
        model_config (`PreTrainedConfig`): of the dense model.
        everywhere (`bool`): whether all tools that know the class must read its `head_dim`.
    """
    family = family_of(model_config)
    narrow = model_config.tie_word_embeddings and config.embeddings != "sliced"

    def fits(hidden_size: int) -> bool:
        keeps_width = hidden_size == model_config.hidden_size
        if keeps_width and family.layer_norm and config.orientation == "random":
            return False  # Only axes that are not turned keep the mean where it is.
        if narrow and narrow_obstacle(config, model_config, keeps_width):
            return False
        found = stock_class(family, model_config, hidden_size)
        return hidden_size > family.layer_norm and found is not None and not (everywhere and found.only)

    return fits


def check_stock_size(config: SliceGPTConfig, model_config, hidden_size: int) -> None:
    """
    Checks that a stock class holds a hidden size.

    Raises:
        ValueError: there is none; the message has the reason, or the nearest sizes that there is one for.
    """
    fits = fits_stock(config, model_config)
    if fits(hidden_size):
        return
    if model_config.tie_word_embeddings and config.embeddings != "sliced":
        obstacle = narrow_obstacle(config, model_config)
        if obstacle:
            raise ValueError(f"architecture='stock' with a tied head: {obstacle}.")
    sizes = [size for size in range(1, model_config.hidden_size + 1) if fits(size)]
    if not sizes:
        raise ValueError(
            f"architecture='stock': a {model_config.model_type} model keeps its width, and orientation='random' turns "
            "the axes along which its LayerNorms subtract the mean; use orientation='pca'."
        )
    nearest = sorted(sizes, key=lambda size: abs(size - hidden_size))[:2]
    raise ValueError(
        f"architecture='stock': no class of transformers holds a {model_config.model_type} model of hidden size "
        f"{hidden_size}; the nearest that fit: {', '.join(map(str, nearest))}."
    )


def nearest_stock_size(config: SliceGPTConfig, model_config, size: int) -> int:
    """
    Finds the largest hidden size up to a given one that a stock class holds, in the largest step that is near enough.

    Args:
        config ([`SliceGPTConfig`]): has the step.
        model_config (`PreTrainedConfig`): of the dense model.
        size (`int`): the wanted hidden size.

    Returns:
        `int`: at most one default step smaller than a multiple of `round_to` is; 0 if there is none.
    """
    step = width_step(config, model_config)
    for smaller in halvings(step):
        for found in range(size - size % smaller, max(0, size - 2 * step), -smaller):
            if fits_stock(config, model_config)(found):
                return found
    return 0
