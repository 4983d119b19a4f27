"""Building the sliced model beside the dense one, and turning one into the other once it is whole."""

from collections.abc import Iterable
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from .modeling import modeling_sliced
from .modeling.configuration_sliced import SLICED_CONFIGS
from .modeling.families import family_of
from .widths import SlicePlan


LEFT_BEHIND = ("model_type", "architectures", "quantization_config", "auto_map", "transformers_version")
"""Keys of a dense configuration that do not describe the sliced model."""


def build_sliced(model: PreTrainedModel, plan: SlicePlan) -> PreTrainedModel:
    """
    The sliced architecture on the `meta` device: names, shapes and configuration, no values.

    Args:
        model (`PreTrainedModel`): the dense causal language model.
        plan ([`SlicePlan`]): width at every site.
    """
    dense = {key: value for key, value in model.config.to_dict().items() if key not in LEFT_BEHIND}
    last = plan.hidden_size if plan.tied else plan.widths[-1]
    family = family_of(model.config)
    sizes = dict.fromkeys(family.size_keys, last)
    if plan.inner is not None:
        sizes[family.inner_key] = plan.inner
    config_class = SLICED_CONFIGS[model.config.model_type]
    config = config_class(
        **dense | sizes | {"tie_word_embeddings": plan.tied},
        shortcuts=plan.shortcuts,
        widths=list(plan.widths),
        original_hidden_size=plan.hidden_size,
        embedding_size=plan.hidden_size if plan.tied else None,
    )
    config.name_or_path = model.config.name_or_path
    sliced_class = sliced_class_of(model)
    with torch.device("meta"):
        sliced = sliced_class._from_config(
            config,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            experts_implementation=model.config._experts_implementation,
        )
    sliced.generation_config = model.generation_config
    return sliced.eval()


def resize_mlps(sliced: PreTrainedModel, neurons: list[int]) -> None:
    """Makes the empty MLPs of a sliced model as large as they are to be, where they differ."""
    if len(set(neurons)) == 1:
        return
    config, family = sliced.config, family_of(sliced.config)
    config.intermediate_sizes = neurons
    setattr(config, family.inner_key, max(neurons))
    layers = getattr(sliced.base_model.get_submodule(family.body), family.layers)
    for layer, count in zip(layers, neurons, strict=True):
        modeling_sliced.resize_mlp(layer, family, count)


def sliced_class_of(model: PreTrainedModel) -> type:
    """
    The class that slicing turns a model into.

    Raises:
        ValueError: the family is unknown or cannot be sliced; the model is no causal language model of it.
    """
    family_of(model.config)
    expected = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config)]
    if type(model) is not expected:
        raise ValueError(
            f"Cannot slice a {type(model).__name__}; load the checkpoint as {expected.__name__} "
            "(AutoModelForCausalLM), slice that, and put other heads on the result."
        )
    return getattr(modeling_sliced, f"Sliced{expected.__name__}")


def adopt_untouched(dense: PreTrainedModel, sliced: PreTrainedModel, names: Iterable[str] = ("",)) -> None:
    """
    Shares with the sliced model each tensor that slicing leaves as it is: per-head norms, rotary or tied tables.

    Args:
        dense (`PreTrainedModel`), sliced (`PreTrainedModel`): the models. What the one has no values of yet, the other
            does without, too.
        names (`Iterable[str]`): of the dense model's modules that are meant, with all that is in them.
    """
    family = family_of(dense.config)
    body = family.body and f"{family.body}."
    prefix = f"{dense.base_model_prefix}.{body}"
    touched = {prefix + family.final_norm}
    if sliced.config.embedding_size is None:
        touched |= {family.head, *(prefix + name for name in family.embeddings)}
    for index in range(dense.config.num_hidden_layers):
        for block in family.blocks:
            on_stream = [*block.writers, *(name for norm, readers in block.reads for name in (norm, *readers))]
            touched.update(f"{prefix}{family.layers}.{index}.{name}" for name in on_stream)
    adopted = {}  # by identity, so that what was tied stays tied
    for name, module in chain(*(dense.get_submodule(name).named_modules(prefix=name) for name in names)):
        target = sliced.get_submodule(name)
        target._buffers.update(module._buffers)
        for key, parameter in module._parameters.items():
            if parameter is None or parameter.is_meta or not touched.isdisjoint((name, f"{name}.{key}")):
                continue
            if target._parameters[key].is_meta:
                if id(parameter) not in adopted:
                    adopted[id(parameter)] = nn.Parameter(parameter.detach())
                target._parameters[key] = adopted[id(parameter)]


@contextmanager
def evaluating(model: nn.Module):
    """A model without dropout, for the time of a computation; every module's own training mode comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


@contextmanager
def placed(module: nn.Module, device: torch.device, dtype: torch.dtype):
    """A module's values on another device and in another dtype, for the time of a computation."""
    stored = [(parameter, parameter.data) for parameter in module.parameters() if not parameter.is_meta]
    for parameter, data in stored:
        parameter.data = data.to(device, dtype)
    try:
        yield module
    finally:
        for parameter, data in stored:
            parameter.data = data


@contextmanager
def padded(module: nn.Module, count: int):
    """For the time of a computation, a module reads so many zeros behind its input's last axis."""
    hook = module.register_forward_pre_hook(lambda _, inputs: (nn.functional.pad(inputs[0], (0, count)), *inputs[1:]))
    try:
        yield module
    finally:
        hook.remove()


@contextmanager
def inputs_recorded(modules: list[nn.Module]):
    """For the time of a computation, modules write nothing, `(..., 0)`, and note what they would have read."""
    seen = {}
    for module in modules:
        # An instance's forward comes before its class's.
        module.forward = lambda given, module=module: seen.update({module: given}) or given[..., :0]
    try:
        yield seen
    finally:
        for module in modules:
            del module.forward


def become(model: PreTrainedModel, sliced: PreTrainedModel) -> PreTrainedModel:
    """
    Turns the caller's dense model into the sliced one: same object, other class and contents.

    Raises:
        RuntimeError: a tensor of the sliced model has no value. Nothing has been changed then.
    """
    missing = [
        name
        for name, tensor in chain(sliced.named_parameters(), sliced.named_buffers())
        if tensor.device.type == "meta"
    ]
    if missing:
        raise RuntimeError(f"No value was given to {', '.join(missing)}: the family's table row is incomplete.")
    sliced.train(model.training)
    model.__class__ = type(sliced)
    model.__dict__ = sliced.__dict__
    return model
