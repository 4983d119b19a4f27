"""
A sliced model whose sites share one basis, as a model of its family's own class: smaller, and known to everyone.

Without shortcuts, such a model differs from a stock one only in its norms, which are RMSNorms of unit gain. A family
with RMSNorms has them already. In a family with LayerNorms, the stream gets one dimension more and moves into the
subspace whose coordinates add up to zero: LayerNorm finds no mean to subtract there, and is an RMSNorm.
"""

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.initialization import no_init_weights

from .assembly import LEFT_BEHIND, build_sliced
from .modeling.families import family_of
from .modeling.weights import Reader, Writer
from .rotation import compose
from .sizes import on_meta
from .widths import SlicePlan


OURS = ("widths", "original_hidden_size", "embedding_size", "shortcuts", "intermediate_sizes", "slicegpt")
"""Keys of a sliced configuration that no stock class knows."""


@torch.no_grad()
def export_stock(model: PreTrainedModel) -> PreTrainedModel:
    """
    The same function in the family's own class (`LlamaForCausalLM`, ...), which needs none of our code.

    Args:
        model (`PreTrainedModel`):
            A sliced causal language model without shortcuts, with a head of its own. It is left as it is.

    Returns:
        `PreTrainedModel`: in evaluation mode, with weights of its own on the same device and in the same dtype. Its
        `hidden_size` is the width, plus one for families with LayerNorms.

    Raises:
        ValueError: see [`check_exportable`].
    """
    check_exportable(model)
    width, family = model.config.hidden_size, family_of(model.config)
    stock = _skeleton(model, width, model.device)
    from_stream, to_stream = _stream_maps(width, model.device) if family.layer_norm else (None, None)

    reads, writers = _on_the_stream(model)
    for name, readers in reads:
        biases = [_set_reader(Reader(model, each), Reader(stock, each), from_stream) for each in readers]
        norm = stock.get_submodule(name)
        if getattr(norm, "weight", None) is not None:
            norm.weight.fill_(1 - family.gain_offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias.fill_(1 if any(biases) else 0)
    for name in writers:
        ours, theirs = Writer(model, name), Writer(stock, name)
        bias = None if ours.bias is None else _mapped(ours.bias[None], to_stream)[0]
        theirs.set(_mapped(ours.weight, to_stream), bias, like=ours.weight)
        if hasattr(ours.module, "embed_scale"):  # Gemma's tables are multiplied by the root of the hidden size
            ratio = ours.module.embed_scale.double() / theirs.module.embed_scale.double()
            theirs.module.weight.copy_(theirs.weight * ratio)
    for name, parameter in _beside_the_stream(model):
        owner, _, key = name.rpartition(".")
        setattr(stock.get_submodule(owner), key, nn.Parameter(parameter.clone()))

    stock.generation_config = deepcopy(model.generation_config)
    stock.config.name_or_path = model.config.name_or_path
    return stock.eval()


def check_exportable(model: PreTrainedModel) -> None:
    """
    Checks what [`export_stock`] needs, all of which `meta` tensors show.

    Raises:
        ValueError: the model is not sliced, has shortcuts or a tied head, or the class has no room for this width.
    """
    obstacle = export_obstacle(model)
    if obstacle:
        raise ValueError(obstacle)


def stock_obstacle(model_config, plan: SlicePlan) -> str | None:
    """
    Why no stock class can hold what a run will produce, before it runs. Nor can one hold what `schedule="energy"`
    makes, which a plan does not say.

    Args:
        model_config (`PreTrainedConfig`): of the dense model.
        plan ([`SlicePlan`]): what the run will keep.

    Returns:
        `str`: the message with which [`export_stock`] would refuse, or `None` if it would not.
    """
    return export_obstacle(build_sliced(on_meta(model_config), plan))


# What can be exported


def export_obstacle(model: PreTrainedModel) -> str | None:
    """The message with which [`export_stock`] would refuse a model, or `None` if it would not."""
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
    fitting = [str(width) for width in _candidates(model) if _misfit(model, width) is None]
    return (
        f"{refused} of width {config.hidden_size} as {model._dense_class.__name__} with hidden_size="
        f"{config.hidden_size + _added_dimensions(config)}: {misfit}. "
        f"Slice to a width that fits; the nearest: {', '.join(fitting[:2])}."
    )


def _misfit(model: PreTrainedModel, width: int) -> str | None:
    """What the stock class refuses, or makes of another size than the sliced model has, at some width."""
    try:
        stock = _skeleton(model, width, "meta")
    except (ValueError, StrictDataclassError) as error:
        return str(error.__cause__ or error).rstrip(".!")
    theirs = dict(_sizes(stock))
    for name, size in _sizes(model):
        if theirs[name] != size:
            return (
                f"{name} would have {tuple(theirs[name])} rows in place of {tuple(size)}, because this class derives "
                "them from hidden_size"
            )
    return None


def _candidates(model: PreTrainedModel) -> list[int]:
    """Widths that may fit, nearest first: the next which the configuration takes, and that of the heads together."""
    config = model.config

    def taken(widths):
        for width in widths:
            try:
                _stock_config(config, width)
            except (ValueError, StrictDataclassError):
                continue
            return [width]
        return []

    width, most = config.hidden_size, config.original_hidden_size
    heads = config.num_attention_heads * config.head_dim - _added_dimensions(config)
    found = {*taken(range(width - 1, 0, -1)), *taken(range(width + 1, most + 1)), heads} - {width}
    return sorted((each for each in found if 0 < each <= most), key=lambda each: abs(each - width))


# The stock class


def _added_dimensions(config) -> int:
    return 1 if family_of(config).layer_norm else 0


def _stock_config(config, width: int):
    size = width + _added_dimensions(config)
    config_class = CONFIG_MAPPING[config.model_type.removeprefix("sliced_")]
    values = {key: value for key, value in config.to_dict().items() if key not in (*LEFT_BEHIND, *OURS)}
    values |= dict.fromkeys(family_of(config).size_keys, size)
    default = getattr(config_class, "head_dim", None)  # which Falcon computes
    if isinstance(default, property) or (default is None and size == config.num_attention_heads * config.head_dim):
        del values["head_dim"]
    return config_class(**values)


def _skeleton(model: PreTrainedModel, width: int, device) -> PreTrainedModel:
    """The stock model at some width, its parameters still without values."""
    with torch.device(device), no_init_weights():
        return model._dense_class._from_config(
            _stock_config(model.config, width),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            experts_implementation=model.config._experts_implementation,
        )


# Its weights


def _on_the_stream(model: PreTrainedModel) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """Names of what is on the stream, in a sliced or a stock model: pairs of a norm and its readers; writers."""
    family = family_of(model.config)
    body = ".".join(filter(None, (model.base_model_prefix, family.body)))
    reads = [(f"{body}.{family.final_norm}", (family.head,))]
    writers = [f"{body}.{name}" for name in family.embeddings]
    for index in range(model.config.num_hidden_layers):
        layer = f"{body}.{family.layers}.{index}."
        for block in family.blocks:
            reads += [(layer + norm, tuple(layer + name for name in readers)) for norm, readers in block.reads]
            writers += [layer + name for name in block.writers]
    return reads, writers


def _beside_the_stream(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    reads, writers = _on_the_stream(model)
    stream = {*writers, *(name for norm, readers in reads for name in (norm, *readers))}
    for name, parameter in model.named_parameters():
        if stream.isdisjoint((name, name.rpartition(".")[0])):
            yield name, parameter


def _sizes(model: PreTrainedModel) -> Iterator[tuple[str, torch.Size]]:
    """Shapes of the weights, without the axis along the stream."""
    reads, writers = _on_the_stream(model)
    for _, readers in reads:
        for name in readers:
            yield name, Reader(model, name).weight.shape[:-1]
    for name in writers:
        yield name, Writer(model, name).weight.shape[:-1]
    for name, parameter in _beside_the_stream(model):
        yield name, parameter.shape


def _stream_maps(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """
    What readers' and writers' weights are multiplied by, from the right, to move a stream under LayerNorms.

    The stream's `width` coordinates become `width + 1` that add up to zero, by the reflection which swaps the last
    axis and the one along which all are equal. LayerNorm divides by one dimension more, so they grow with its root,
    and the same eps is exact.

    Returns:
        `tuple`: two matrices of shape `(width, width + 1)`, float64.
    """
    size = width + 1
    isometry = torch.eye(width, size, dtype=torch.float64, device=device)
    isometry[:, :width] -= 1 / (size - math.sqrt(size))
    isometry[:, width] = 1 / math.sqrt(size)
    growth = math.sqrt(size / width)
    return isometry / growth, isometry * growth


def _mapped(weight: Tensor, matrix: Tensor | None) -> Tensor:
    return weight.clone() if matrix is None else compose(weight, matrix, weight.dtype)


def _set_reader(ours: Reader, theirs: Reader, from_stream: Tensor | None) -> bool:
    """
    Gives a stock reader its weights, and says whether it wants a bias of ones from its norm.

    A stock reader may have no place for a bias that ours took from the norm. Along the axis of ones, which is empty
    otherwise, it reads the norm's bias: the bias becomes one more input.
    """
    weight = ours.weight
    borrows = ours.bias is not None and theirs.bias is None
    if borrows:
        weight = torch.cat([weight, ours.bias[:, None]], 1)
        ones = torch.full_like(from_stream[:1], 1 / from_stream.shape[1])
        from_stream = torch.cat([from_stream, ones])
    theirs.set(_mapped(weight, from_stream), None if borrows else ours.bias, like=ours.weight)
    return borrows
