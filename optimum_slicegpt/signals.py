"""Calibration batches on their way through a model: the residual stream, and what layers are called with."""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .modeling.families import family_of


@dataclass
class Signal:
    """
    One calibration batch at one site.

    Args:
        hidden (`torch.Tensor` of shape `(B, T, width)`): the stream.
        real (`torch.Tensor` of shape `(B, T)`, *optional*): which positions are no padding; `None` for all.
        layer_kwargs (`list[dict]`): what each decoder layer is called with.
    """

    hidden: Tensor
    real: Tensor | None
    layer_kwargs: list[dict]

    def tokens(self, values: Tensor) -> Tensor:
        """Values `(B, T, ...)` of all positions that are no padding, as `(tokens, ...)`."""
        return values.flatten(0, 1) if self.real is None else values[self.real]


def first_signal(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> Signal:
    """
    The stream at the first site of a dense model, centred where its norms would do that.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        batch (`dict[str, torch.Tensor]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`.
        device (`torch.device`), dtype (`torch.dtype`): in which the layers will compute.
    """
    family = family_of(model.config)
    body = model.base_model.get_submodule(family.body)
    names = tuple(inspect.signature(getattr(body, family.layers)[0].forward).parameters)[1:]
    calls = []

    def record(hidden_states, *args, **kwargs):
        calls.append((hidden_states, args, kwargs))
        return (hidden_states,) if family.returns_tuple else hidden_states

    with layers_replaced(model, record):
        body(**{key: value.to(model.device) for key, value in batch.items()}, use_cache=False)
    hidden = calls[0][0].to(device, dtype, copy=True)
    if family.layer_norm:
        hidden -= hidden.mean(-1, keepdim=True)
    mask = batch.get("attention_mask")
    return Signal(
        hidden=hidden,
        real=None if mask is None else mask.bool().to(device),
        layer_kwargs=_moved(
            [dict(zip(names, args, strict=False)) | kwargs for _, args, kwargs in calls], device, dtype
        ),
    )


@contextmanager
def layers_replaced(model: PreTrainedModel, forward):
    """For the time of a computation, every decoder layer calls `forward` in place of its own."""
    family = family_of(model.config)
    layers = getattr(model.base_model.get_submodule(family.body), family.layers)
    for layer in layers:
        layer.forward = forward  # an instance's comes before its class's
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def injected(model: PreTrainedModel, hidden: Tensor):
    """For the time of a computation, `hidden` `(B, T, D)` is what comes out of the model's decoder layers."""
    output = (hidden,) if family_of(model.config).returns_tuple else hidden
    return layers_replaced(model, lambda *args, **kwargs: output)


def _moved(layer_kwargs: list[dict], device: torch.device, dtype: torch.dtype) -> list[dict]:
    """Tensors on the computing device, floating ones in the calibration's dtype; what layers share stays shared."""
    moved = {}

    def move(value):
        if isinstance(value, tuple):
            return tuple(map(move, value))
        if not isinstance(value, Tensor):
            return value
        if id(value) not in moved:
            moved[id(value)] = within(value, dtype).to(device) if value.is_floating_point() else value.to(device)
        return moved[id(value)]

    return [{key: move(value) for key, value in kwargs.items()} for kwargs in layer_kwargs]


def within(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In another dtype, without infinities where that is narrower: a mask's least number stays a number."""
    bounds = torch.finfo(dtype)
    if bounds.max < torch.finfo(value.dtype).max:
        value = value.clamp(bounds.min, bounds.max)
    return value.to(dtype)
