"""Changes to a model that last for a computation: evaluation mode, placement, padding, replaced forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


if TYPE_CHECKING:
    from .decoder import Decoder


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switches a model to evaluation mode. Afterwards every module has its own training mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


@contextmanager
def placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[nn.Module]:
    """Copies a module's parameters to a device and a dtype. Afterwards the module has its own tensors again."""
    stored = [(parameter, parameter.data) for parameter in module.parameters() if not parameter.is_meta]
    for parameter, data in stored:
        parameter.data = data.to(device, dtype)
    try:
        yield module
    finally:
        for parameter, data in stored:
            parameter.data = data


@contextmanager
def padded(module: nn.Module, count: int) -> Iterator[nn.Module]:
    """Appends `count` zeros to the last axis of a module's input."""
    hook = module.register_forward_pre_hook(lambda _, inputs: (nn.functional.pad(inputs[0], (0, count)), *inputs[1:]))
    try:
        yield module
    finally:
        hook.remove()


@contextmanager
def inputs_recorded(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Yields a mapping that receives the input of each module. The modules themselves return nothing, `(..., 0)`."""
    inputs = {}
    for module in modules:
        # The forward of an instance comes before the forward of its class.
        module.forward = lambda given, module=module: inputs.update({module: given}) or given[..., :0]
    try:
        yield inputs
    finally:
        for module in modules:
            del module.forward


@contextmanager
def layers_replaced(decoder: Decoder, forward: Callable) -> Iterator[None]:
    """Lets every decoder layer of a model call `forward` instead of its own."""
    for layer in decoder.layers:
        layer.forward = forward  # The forward of an instance comes before the forward of its class.
    try:
        yield
    finally:
        for layer in decoder.layers:
            del layer.forward


def injected(decoder: Decoder, stream: Tensor) -> AbstractContextManager[None]:
    """Lets the decoder layers of a model put out `stream` `(B, T, D)`, whatever they read."""
    output = (stream,) if decoder.family.returns_tuple else stream
    return layers_replaced(decoder, lambda *args, **kwargs: output)
