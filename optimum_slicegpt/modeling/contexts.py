"""Changes to a model that last for a computation: evaluation mode, placement, padding, replaced forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..linalg.composition import moved


if TYPE_CHECKING:
    from .decoder import Decoder


@contextmanager
def undisturbed(gradients: bool = False) -> Iterator[None]:
    """
    Computes as torch does by itself, whatever a caller has set: without autocast, which would round sums, without
    inference mode, whose tensors could never be trained, with new tensors in float32 on the CPU, and without gradients
    unless they are asked for.
    """
    devices = {"cpu", getattr(torch.accelerator.current_accelerator(), "type", "cpu")}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for device in filter(torch.is_autocast_enabled, devices):
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        yield


HALF_PRODUCTS = {
    torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    torch.float16: ("_is_amx_fp16_supported",),
}
"""Functions of `torch.cpu`, not all in every version, one of which says that the processor multiplies this dtype."""


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """
    Tells whether a device multiplies a dtype in its hardware. Elsewhere numbers are converted one by one, which makes
    products several times slower than those of float32. A GPU that is not here is taken to be a recent one.
    """
    if dtype not in HALF_PRODUCTS:
        return True
    if device.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in HALF_PRODUCTS[dtype])
    if device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def fastest_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Returns a dtype, bfloat16 instead of float32 where a device multiplies it, or float32 where it does not."""
    if dtype == torch.float32 and multiplies(torch.bfloat16, device):
        return torch.bfloat16
    return dtype if multiplies(dtype, device) else torch.float32


def choose_dtype(name: str | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """
    Returns the dtype in which layers compute: one by its name, or the fastest for `"auto"`. By default it is `stored`,
    or float32 where the device does not multiply that, which is exact.
    """
    if name not in (None, "auto"):
        return getattr(torch, name)
    fastest = fastest_dtype(stored, device)
    return fastest if name or fastest.itemsize > stored.itemsize else stored


PLAIN_OUTPUTS = {
    "_output_attentions": False,  # Its setter refuses some values that are there.
    "output_hidden_states": False,
    "output_router_logits": False,
    "return_dict": True,
}
"""Attributes of configurations that say what models put out, with the values at which it is logits alone."""


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """
    Switches a model to evaluation mode, and lets it put out logits alone. Afterwards every module has its own training
    mode again, and the configuration its own outputs.
    """
    training = [module for module in model.modules() if module.training]
    config = vars(model.config)
    outputs = {key: config[key] for key in PLAIN_OUTPUTS.keys() & config.keys()}
    try:
        model.eval()
        config.update((key, PLAIN_OUTPUTS[key]) for key in outputs)
        yield model
    finally:
        for module in training:
            module.training = True
        config.update(outputs)


@contextmanager
def placed(
    module: nn.Module, device: torch.device, dtype: torch.dtype | None = None, without: Iterable[nn.Module] = ()
) -> Iterator[nn.Module]:
    """
    Copies a module's parameters and buffers to a device, the parameters to a dtype, too, except those of the modules
    `without`. Afterwards, and after an error, the module has its own tensors again.
    """
    left = {id(each) for part in without for each in part.modules()}
    modules = [each for each in module.modules() if id(each) not in left]
    parameters = {parameter: parameter.data for each in modules for parameter in each.parameters(recurse=False)}
    parameters = [(parameter, data) for parameter, data in parameters.items() if not parameter.is_meta]
    buffers = [(owner._buffers, key, value) for owner in modules for key, value in owner._buffers.items()]
    try:
        for parameter, data in parameters:
            parameter.data = moved(data, device, dtype or data.dtype)
        for held, key, value in buffers:
            if value is not None and not value.is_meta:
                held[key] = value.to(device)
        yield module
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for held, key, value in buffers:
            held[key] = value


SHARE_OF_DEVICE = 0.7
"""Share of a device's free memory that may be kept occupied. What a step needs takes the rest."""


def room_on(device: torch.device) -> int:
    """Returns how many bytes may be kept on a GPU in addition to what is there."""
    return int(SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0])


@contextmanager
def computing_on(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None = None
) -> Iterator[PreTrainedModel]:
    """
    Lets a model compute on a device, in a dtype. It is copied there. Where the device is too small for it, or where it
    is smaller in its own dtype, all but its layers is copied, and each layer while it computes.
    """
    layers, elsewhere = [], sum(each.nbytes for each in model.parameters() if each.device != device)
    is_widened = dtype is not None and dtype.itemsize > model.dtype.itemsize
    if is_widened or (device.type == "cuda" and elsewhere > room_on(device)):
        names = set(model._no_split_modules or ())
        layers = [module for module in model.modules() if type(module).__name__ in names]

    def placing(layer):
        forward = layer.forward

        def compute(*args, **kwargs):
            with placed(layer, device, dtype):
                return forward(*args, **kwargs)

        return compute

    with placed(model, device, dtype, without=layers), forwards_replaced(layers, placing):
        yield model


@contextmanager
def padded(modules: list[nn.Module], count: int) -> Iterator[None]:
    """Appends `count` zeros to the last axis of what modules read."""

    def pad(_, inputs):
        return nn.functional.pad(inputs[0], (0, count)), *inputs[1:]

    hooks = [module.register_forward_pre_hook(pad) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def forwards_replaced(modules: Iterable[nn.Module], make: Callable[[nn.Module], Callable]) -> Iterator[None]:
    """Lets each module call the forward that `make` returns for it. Afterwards each has the one that it had."""
    # The forward of an instance, which somebody else may have set, comes before the forward of its class.
    before = [(module, vars(module).get("forward")) for module in modules]
    try:
        for module, _ in before:
            module.forward = make(module)
        yield
    finally:
        for module, forward in before:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


@contextmanager
def inputs_recorded(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Yields a mapping that receives the input of each module. The modules themselves return nothing, `(..., 0)`."""
    inputs = {}
    with forwards_replaced(modules, lambda module: lambda given: inputs.update({module: given}) or given[..., :0]):
        yield inputs


@contextmanager
def inputs_seen(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Yields a mapping that receives the input of each module, once it has computed. The modules stay as they are."""
    inputs = {}
    with ExitStack() as stack:
        for module in modules:
            hook = module.register_forward_pre_hook(lambda module, given: inputs.update({module: given[0]}))
            stack.callback(hook.remove)
        yield inputs


def layers_replaced(decoder: Decoder, forward: Callable) -> AbstractContextManager[None]:
    """Lets every decoder layer of a model call `forward` instead of its own."""
    return forwards_replaced(decoder.layers, lambda layer: forward)


def injected(decoder: Decoder, stream: Tensor) -> AbstractContextManager[None]:
    """Lets the decoder layers of a model put out `stream` `(B, T, D)`, whatever they read."""
    output = (stream, None) if decoder.family.returns_tuple else stream
    return layers_replaced(decoder, lambda *args, **kwargs: output)
