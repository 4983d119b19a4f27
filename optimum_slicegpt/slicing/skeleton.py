"""Builds the empty sliced model beside the dense one, and turns one into the other once it is whole."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from ..modeling.families import family_of
from ..modeling.stock import LEFT_BEHIND
from ..modeling.weights import is_among, resize_mlp


if TYPE_CHECKING:
    from ..modeling.decoder import Decoder
    from ..planning.widths import SlicePlan


def build_sliced(model: PreTrainedModel, plan: SlicePlan) -> PreTrainedModel:
    """
    Builds the sliced architecture on the `meta` device: names, shapes and configuration, no values.

    Args:
        model (`PreTrainedModel`): the dense causal language model.
        plan ([`SlicePlan`]): width at every site, and neurons.
    """
    dense = {key: value for key, value in model.config.to_dict().items() if key not in LEFT_BEHIND}
    projected, tied = plan.embeddings == "tied", model.config.tie_word_embeddings and plan.embeddings != "sliced"
    last = plan.hidden_size if projected else plan.widths[-1]
    family = family_of(model.config)
    sizes = dict.fromkeys(family.size_keys, last)
    if plan.neurons is not None:
        sizes[family.neurons_key] = plan.neurons * family.neuron_units
    config = CONFIG_MAPPING[f"sliced_{model.config.model_type}"](
        **dense | sizes | {"tie_word_embeddings": tied},
        shortcuts=plan.shortcuts,
        widths=list(plan.widths),
        original_hidden_size=plan.hidden_size,
        embedding_size=plan.hidden_size if projected else None,
    )
    config.name_or_path = model.config.name_or_path
    with torch.device("meta"):
        sliced = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(
            config,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            experts_implementation=model.config._experts_implementation,
        )
    release_values(sliced)  # Some constructors draw values wherever they are told to be.
    sliced.generation_config = model.generation_config
    return sliced.eval()


def resize_mlps(sliced: Decoder, neurons: list[int]) -> None:
    """Makes the empty MLPs of a sliced model as large as they are to be, where they differ."""
    if len(set(neurons)) == 1:
        return
    sliced.config.intermediate_sizes = neurons
    setattr(sliced.config, sliced.family.neurons_key, max(neurons) * sliced.family.neuron_units)
    for layer, count in zip(sliced.layers, neurons, strict=True):
        resize_mlp(layer, sliced.family, count)


def adopt_untouched(dense: Decoder, sliced: Decoder, names: Iterable[str] = ("",)) -> None:
    """
    Shares with the sliced model each tensor that slicing leaves as it is: per-head norms, rotary or tied tables.

    Args:
        dense ([`Decoder`]): the dense model. Tensors that have no values yet are left out.
        sliced ([`Decoder`]): the sliced model. Tensors that have values already stay.
        names (`Iterable[str]`): modules of the dense model whose tensors are meant, with all that is in them.
    """
    reads, writers = dense.names_on_stream()
    (final_norm, head), *reads = reads
    touched = {final_norm, *writers, *(name for norm, readers in reads for name in (norm, *readers))}
    touched.update(dense.post_norm_names)
    if sliced.config.embedding_size is None:
        touched.update(head)
    else:
        touched.difference_update(dense.table_names)
    adopted = {}  # Parameters are looked up by identity, so that tied tensors stay tied.
    for name, module in chain(*(dense.model.get_submodule(name).named_modules(prefix=name) for name in names)):
        target = sliced.model.get_submodule(name)
        target._buffers.update(module._buffers)
        for key, parameter in module._parameters.items():
            if parameter is None or parameter.is_meta or is_among(f"{name}.{key}", touched):
                continue
            if target._parameters[key].is_meta:
                if id(parameter) not in adopted:
                    adopted[id(parameter)] = nn.Parameter(parameter.detach())
                target._parameters[key] = adopted[id(parameter)]


def release_values(model: PreTrainedModel) -> None:
    """Takes the values of all parameters from a model, whose names and shapes stay."""
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[key] = nn.Parameter(torch.empty_like(parameter, device="meta"))


def take_mode(model: PreTrainedModel, sliced: PreTrainedModel) -> PreTrainedModel:
    """
    Returns the sliced model, once it is known to be whole, in the mode of the dense one: training or evaluation.

    Raises:
        RuntimeError: a tensor of the sliced model has no value.
    """
    missing = [
        name
        for name, tensor in chain(sliced.named_parameters(), sliced.named_buffers())
        if tensor.device.type == "meta"
    ]
    if missing:
        raise RuntimeError(f"No value was given to {', '.join(missing)}: the family's table row is incomplete.")
    return sliced.train(model.training)


def replace_in_place(model: PreTrainedModel, sliced: PreTrainedModel) -> PreTrainedModel:
    """
    Turns the caller's dense model into the sliced one: the same object, of another class, with other contents.

    Raises:
        RuntimeError: a tensor of the sliced model has no value. Nothing has been changed then.
    """
    take_mode(model, sliced)
    model.__class__ = type(sliced)
    model.__dict__ = sliced.__dict__
    return model
