"""Checks that a model can be sliced, or is sliced."""

from itertools import chain

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from .decoder import empty_model
from .families import family_of
from .stock import own_config


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights that are plain numbers. Those of quantized models are others, or a subclass of tensors."""


def is_sliced(config) -> bool:
    """
    Tells whether a model is sliced: it has the record of its slicing, or its dense model's hidden size.

    Args:
        config (`PreTrainedConfig`): of any model.
    """
    return getattr(config, "slicegpt", None) is not None or hasattr(config, "original_hidden_size")


def check_dense(config) -> None:
    """
    Checks that a configuration is of a model that is not sliced yet.

    Args:
        config (`PreTrainedConfig`): of any model.

    Raises:
        ValueError: it is sliced.
    """
    if is_sliced(config):
        record = getattr(config, "slicegpt", None) or {}
        base = f", {record['base_model']}," if record.get("base_model") else ""
        raise ValueError(f"This model is already sliced; slice the dense model{base} with the sparsity you want.")


def check_sliceable(model: PreTrainedModel) -> None:
    """
    Checks that a model can be sliced.

    Args:
        model (`PreTrainedModel`): any model.

    Raises:
        ValueError: the model is already sliced, quantized, carries adapters, offload hooks, parametrizations or
            tensors of inference mode, is of an unsupported family, is not a causal language model, or has other
            modules than its configuration says.
    """
    check_dense(model.config)
    weights = [parameter.data for parameter in model.parameters()]
    if any(type(weight) is not Tensor or weight.dtype not in FLOATS for weight in weights):
        raise ValueError("This model is quantized; slice the full-precision model first and quantize the result.")
    check_without_adapters(model, "This model", "slice")
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ValueError(
            "This model is dispatched by accelerate (device_map, offloading); load it on one device, or on the CPU "
            "with SliceGPTConfig(device='cuda'), which slices layer by layer on the GPU."
        )
    if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
        raise ValueError(
            "This model holds tensors of torch.inference_mode, with which nothing can be trained; load it, or move it "
            "to its device, outside of that."
        )
    for name, module in model.named_modules():
        # `weight_norm`, `spectral_norm` and `prune` of older kinds put a tensor in the place of a parameter.
        if is_parametrized(module) or isinstance(vars(module).get("weight"), Tensor):
            raise ValueError(
                f"The weight of {name} is computed from other tensors, by a parametrization, a norm or a pruning mask "
                "of torch.nn.utils; remove that first (remove_parametrizations, remove_weight_norm, prune.remove), "
                "which leaves the weight itself, then slice."
            )
    family_of(model.config)
    _check_modules(model)


def _check_modules(model: PreTrainedModel) -> None:
    """Checks that a model has its family's own parameters, in the shapes of its configuration, each for itself."""
    config = own_config(model.config)
    expected = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    shapes, stock = _shapes_of(model), _shapes_of(empty_model(config))
    if not isinstance(model, expected) and shapes.keys() != stock.keys():
        raise ValueError(
            f"Cannot slice a {type(model).__name__}; load the checkpoint as {expected.__name__} "
            "(AutoModelForCausalLM), slice that, and put other heads on the result."
        )
    differing = [name for name in {**stock, **shapes} if shapes.get(name) != stock.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"This model is not what its configuration says, in {len(differing)} parameters. {name}: "
            f"{shapes.get(name, 'absent')} in the model, {stock.get(name, 'absent')} by the configuration. Correct "
            "the configuration, or slice the model before other tools change single layers of it."
        )


def _shapes_of(model):
    """Returns the shape of every parameter, or whose tensor it has; who has the embedding's is another matter."""
    names, table = {}, model.get_input_embeddings().weight
    return {
        name: tuple(each.shape) if each is table or names.setdefault(each, name) == name else f"that of {names[each]}"
        for name, each in model.named_parameters(remove_duplicate=False)
    }


def check_without_adapters(model: PreTrainedModel, name: str, next_step: str) -> None:
    """
    Checks that a model carries no adapters of PEFT. Adapters that were merged do not count.

    Args:
        model (`PreTrainedModel`): any model.
        name (`str`): begins the message: `"This model"`.
        next_step (`str`): ends the message: a verb.

    Raises:
        ValueError: a layer is inside an adapter of PEFT.
    """
    # PEFT's wrappers hold the layer under one of these names. It may leave a `peft_config` on a model that it unloads.
    if any(hasattr(module, "base_layer") or hasattr(module, "original_module") for module in model.modules()):
        raise ValueError(f"{name} carries PEFT adapters; call merge_and_unload() first, then {next_step}.")


def check_sliced(model: PreTrainedModel, remedy: str) -> None:
    """
    Checks that a model is sliced.

    Args:
        model (`PreTrainedModel`): any model.
        remedy (`str`): ends the message.

    Raises:
        ValueError: the model is not sliced.
    """
    if not is_sliced(model.config):
        raise ValueError(f"This {type(model).__name__} is not sliced: its configuration has no 'slicegpt'; {remedy}.")
