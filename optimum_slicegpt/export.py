"""
Export of a sliced model to its family's own class, which every tool of the family can read.

A sliced model whose sites share one basis has no shortcuts. It differs from a stock model only in its norms, which are
RMSNorms with gain 1. Families with RMSNorms have these norms already. In families with LayerNorms, the stream gets one
more dimension and moves into the subspace whose coordinates add up to zero. There LayerNorm has no mean to subtract,
and is an RMSNorm.
"""

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.initialization import no_init_weights

from .linalg.moments import compose
from .modeling.decoder import Decoder, empty_model
from .modeling.families import family_of
from .modeling.weights import Reader, Writer
from .planning.widths import SlicePlan
from .slicing.skeleton import LEFT_BEHIND, build_sliced


SLICED_KEYS = ("widths", "original_hidden_size", "embedding_size", "shortcuts", "intermediate_sizes", "slicegpt")
"""Keys of a sliced configuration that no stock class has."""


@torch.no_grad()
def export_stock(model: PreTrainedModel) -> PreTrainedModel:
    """
    Builds a model of the family's own class (`LlamaForCausalLM`, ...) that computes the same function and needs no
    code of this package.

    Args:
        model (`PreTrainedModel`):
            A sliced causal language model without shortcuts, with a head of its own. It does not change.

    Returns:
        `PreTrainedModel`: in evaluation mode, with its own weights on the same device and in the same dtype. Its
        `hidden_size` is the width, plus one for families with LayerNorms.

    Raises:
        ValueError: the model is not sliced, has shortcuts or a tied head, or the class cannot hold this width.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from optimum_slicegpt import SliceGPTConfig
        >>> sizes = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes))
        >>> tokens = {"input_ids": torch.arange(96).view(4, 24)}
        >>> sliced = model.compress(SliceGPTConfig(sparsity=0.4, round_to=4, dataset=[tokens]))
        >>> stock = export_stock(sliced)
        >>> type(stock).__name__, stock.config.hidden_size
        ('LlamaForCausalLM', 28)
    """
    check_exportable(model)
    width, family = model.config.hidden_size, family_of(model.config)
    stock = _empty_stock(model, width, model.device)
    from_stream, to_stream = _stream_maps(width, model.device) if family.layer_norm else (None, None)

    reads, writers = Decoder(model).names_on_stream()
    for name, readers in reads:
        biases = [_set_reader(Reader(model, each), Reader(stock, each), from_stream) for each in readers]
        norm = stock.get_submodule(name)
        if getattr(norm, "weight", None) is not None:
            norm.weight.fill_(1 - family.gain_offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias.fill_(1 if any(biases) else 0)
    for name in writers:
        ours, theirs = Writer(model, name), Writer(stock, name)
        bias = None if ours.bias is None else _map_stream(ours.bias[None], to_stream)[0]
        theirs.set(_map_stream(ours.weight, to_stream), bias, like=ours.weight)
        if hasattr(ours.module, "embed_scale"):  # Gemma multiplies its tables by the root of the hidden size.
            ratio = ours.module.embed_scale.double() / theirs.module.embed_scale.double()
            theirs.module.weight.copy_(theirs.weight * ratio)
    for name, parameter in _parameters_off_stream(model):
        owner, _, key = name.rpartition(".")
        setattr(stock.get_submodule(owner), key, nn.Parameter(parameter.clone()))

    stock.generation_config = deepcopy(model.generation_config)
    stock.config.name_or_path = model.config.name_or_path
    return stock.eval()


def check_exportable(model: PreTrainedModel) -> None:
    """
    Checks that [`export_stock`] can export a model. `meta` tensors are enough for this check.

    Raises:
        ValueError: the model is not sliced, has shortcuts or a tied head, or the class cannot hold this width.
    """
    obstacle = export_obstacle(model)
    if obstacle:
        raise ValueError(obstacle)


def stock_obstacle(model_config, plan: SlicePlan) -> str | None:
    """
    Says before a run why no stock class can hold its result. A plan does not show `schedule="energy"`, whose result no
    stock class can hold either.

    Args:
        model_config (`PreTrainedConfig`): of the dense model.
        plan ([`SlicePlan`]): of the run.

    Returns:
        `str`: the message with which [`export_stock`] would refuse the result, or `None` if it would export it.
    """
    return export_obstacle(build_sliced(empty_model(model_config), plan))


# What can be exported


def export_obstacle(model: PreTrainedModel) -> str | None:
    """Returns the message with which [`export_stock`] would refuse a model, or `None` if it would export it."""
    config = model.config
    if not config.model_type.startswith("sliced_"):
        return (
            f"Cannot export model_type={config.model_type!r}: it is no sliced model, but of a stock class already. "
            "Slice it first, with SliceGPTConfig(rotation='shared')."
        )
    if not hasattr(model, family_of(config).head):
        return f"Cannot export a {type(model).__name__}: load the checkpoint with AutoModelForCausalLM."
    refused = f"Cannot export this {config.model_type} model"
    if config.shortcuts:
        return (
            f"{refused}: shortcuts={config.shortcuts}, and no stock class has linear layers on its residual "
            "connections. Slice the dense model with SliceGPTConfig(rotation='shared')."
        )
    if config.embedding_size is not None:
        return (
            f"{refused}: embedding_size={config.embedding_size}, the head shares the embedding's matrix, and no stock "
            "class has projections on either side of that. Slice the dense model with embeddings='sliced'."
        )
    if config.intermediate_sizes is not None:
        return (
            f"{refused}: intermediate_sizes holds {min(config.intermediate_sizes)} to "
            f"{max(config.intermediate_sizes)}, and no stock class has MLPs that differ in size. Slice the dense "
            "model with SliceGPTConfig(schedule='uniform')."
        )
    misfit = _misfit(model, config.hidden_size)
    if misfit is None:
        return None
    fitting = [str(width) for width in _nearest_widths(model) if _misfit(model, width) is None]
    return (
        f"{refused} of width {config.hidden_size} as {model._dense_class.__name__} with hidden_size="
        f"{config.hidden_size + _added_dimensions(config)}: {misfit}. "
        f"Slice to a width that fits; the nearest: {', '.join(fitting[:2])}."
    )


def _misfit(model: PreTrainedModel, width: int) -> str | None:
    """Returns what does not fit at a width: the stock class refuses it, or changes the size of a weight."""
    try:
        stock = _empty_stock(model, width, "meta")
    except (ValueError, StrictDataclassError) as error:
        return str(error.__cause__ or error).rstrip(".!")
    theirs = dict(_sizes(stock))
    for name, size in _sizes(model):
        if theirs[name] != size:
            return (
                f"{name} would have {tuple(theirs[name])} rows instead of {tuple(size)}, because this class derives "
                "them from hidden_size"
            )
    return None


def _nearest_widths(model: PreTrainedModel) -> list[int]:
    """Lists widths that may fit, nearest first: the next that the configuration accepts, and that of all heads."""
    config = model.config

    def first_accepted(widths):
        for width in widths:
            try:
                _stock_config(config, width)
            except (ValueError, StrictDataclassError):
                continue
            return [width]
        return []

    width, most = config.hidden_size, config.original_hidden_size
    heads = config.num_attention_heads * config.head_dim - _added_dimensions(config)
    found = {*first_accepted(range(width - 1, 0, -1)), *first_accepted(range(width + 1, most + 1)), heads} - {width}
    return sorted((each for each in found if 0 < each <= most), key=lambda each: abs(each - width))


# The stock class


def _added_dimensions(config) -> int:
    """Returns by how many dimensions the stock stream is wider than the sliced stream."""
    return 1 if family_of(config).layer_norm else 0


def _stock_config(config, width: int):
    size = width + _added_dimensions(config)
    config_class = CONFIG_MAPPING[config.model_type.removeprefix("sliced_")]
    values = {key: value for key, value in config.to_dict().items() if key not in (*LEFT_BEHIND, *SLICED_KEYS)}
    values |= dict.fromkeys(family_of(config).size_keys, size)
    default = getattr(config_class, "head_dim", None)  # Falcon's is a property that divides by the heads.
    if isinstance(default, property) or (default is None and size == config.num_attention_heads * config.head_dim):
        del values["head_dim"]
    return config_class(**values)


def _empty_stock(model: PreTrainedModel, width: int, device) -> PreTrainedModel:
    """Builds the stock model of a width, whose parameters have no values yet."""
    with torch.device(device), no_init_weights():
        return model._dense_class._from_config(
            _stock_config(model.config, width),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            experts_implementation=model.config._experts_implementation,
        )


# Weights of the stock model


def _parameters_off_stream(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters that neither read nor write the stream, and belong to no norm on it."""
    reads, writers = Decoder(model).names_on_stream()
    stream = {*writers, *(name for norm, readers in reads for name in (norm, *readers))}
    for name, parameter in model.named_parameters():
        if stream.isdisjoint((name, name.rpartition(".")[0])):
            yield name, parameter


def _sizes(model: PreTrainedModel) -> Iterator[tuple[str, torch.Size]]:
    """Yields the name and the shape of each weight, without the axis along the stream."""
    reads, writers = Decoder(model).names_on_stream()
    for _, readers in reads:
        for name in readers:
            yield name, Reader(model, name).weight.shape[:-1]
    for name in writers:
        yield name, Writer(model, name).weight.shape[:-1]
    for name, parameter in _parameters_off_stream(model):
        yield name, parameter.shape


def _stream_maps(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """
    Returns the matrices that right-multiply the weights of readers and of writers to move a stream under LayerNorms.

    With n = width + 1, the first `width` rows of the Householder reflection that swaps the axes eₙ and 1ₙ / √n map the
    stream to n coordinates that add up to zero: I - v vᵀ / (n - √n) with v = 1ₙ - √n eₙ. LayerNorm divides by n
    dimensions instead of `width`, so the stream is multiplied by √(n / width), and the same eps is exact.

    Returns:
        `tuple`: two matrices of shape `(width, width + 1)`, float64, for readers and for writers.
    """
    size = width + 1
    isometry = torch.eye(width, size, dtype=torch.float64, device=device)
    isometry[:, :width] -= 1 / (size - math.sqrt(size))
    isometry[:, width] = 1 / math.sqrt(size)
    growth = math.sqrt(size / width)
    return isometry / growth, isometry * growth


def _map_stream(weight: Tensor, matrix: Tensor | None) -> Tensor:
    """Returns `weight @ matrix`, or a copy of `weight` where the stream stays as it is."""
    return weight.clone() if matrix is None else compose(weight, matrix, weight.dtype)


def _set_reader(ours: Reader, theirs: Reader, from_stream: Tensor | None) -> bool:
    """
    Sets the weights of a stock reader.

    A sliced reader may hold a bias that came from its norm, and the stock reader may have none. Its bias then becomes
    one more input: along the axis of ones, which is otherwise empty, the stock reader reads a norm bias of ones.

    Returns:
        `bool`: whether the stock norm needs a bias of ones.
    """
    weight = ours.weight
    needs_ones = ours.bias is not None and theirs.bias is None
    if needs_ones:
        weight = torch.cat([weight, ours.bias[:, None]], 1)
        ones = torch.full_like(from_stream[:1], 1 / from_stream.shape[1])
        from_stream = torch.cat([from_stream, ones])
    theirs.set(_map_stream(weight, from_stream), None if needs_ones else ours.bias, like=ours.weight)
    return needs_ones
