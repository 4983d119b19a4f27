"""Where a walk finds the weights of the dense model, keeps activations, and leaves what is finished: here, memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .configuration import SliceGPTConfig


if TYPE_CHECKING:
    from .walk import Walk


ALIGNMENT = 64
"""Bytes. On CPUs, products of matrices round as their operands are aligned; new tensors are aligned like this."""


class InMemory:
    """
    A dense model and a sliced one in memory. [`streaming.OnDisk`] does the same for checkpoints.

    Args:
        model (`PreTrainedModel`): the dense model.
        config ([`SliceGPTConfig`]): says where to compute, and where to keep activations.

    Attributes:
        home (`torch.device`): where weights are before and after a computation.
    """

    def __init__(self, model: PreTrainedModel, config: SliceGPTConfig):
        self.home = model.device
        self._kept_on = torch.device("cpu" if config.offload_activations else config.device or self.home)

    @contextmanager
    def at_hand(self, walk: Walk, names: Iterable[str]) -> Iterator[None]:
        """
        For the time of a computation, modules of the dense model have their values, aligned in memory.

        Args:
            walk ([`Walk`]): whose dense model it is.
            names (`Iterable[str]`): of the modules.
        """
        moved = []
        for name in names:
            for parameter in walk.dense.get_submodule(name).parameters():
                if parameter.data_ptr() % ALIGNMENT:  # weights that a file is mapped to lie anywhere
                    moved.append((parameter, parameter.data))
                    parameter.data = parameter.data.clone()
        try:
            yield
        finally:
            for parameter, data in moved:
                parameter.data = data

    def keep(self, tensor: Tensor) -> Tensor:
        """Something that has the shape of a tensor, and whose `to(device)` is the tensor."""
        return tensor.to(self._kept_on)

    def lay_out(self, walk: Walk) -> None:
        """Called when parts of the sliced model that are empty yet have changed their shape."""

    def restore(self, walk: Walk) -> int:
        """Takes up an interrupted run. Returns how many of its steps are done."""
        return 0

    def commit(self, walk: Walk, done: int) -> None:
        """Called after each step, when so many are done: every weight that the sliced model has by now is final."""


def release_freed_memory() -> None:
    """
    Gives back to the system what has been freed. The C library of Linux keeps it where something that is still in use
    lies behind, as every sliced weight does behind the activations of its layer: a tenth of the peak and more.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # musl has none
    if trim is not None:
        trim(0)


class Loaded(Sequence):
    """
    A sequence whose items are loaded when they are asked for.

    Args:
        items (`Sequence`): what stands for them.
        load (callable): makes an item of one of these.
    """

    def __init__(self, items: Sequence, load: Callable[[Any], Any]):
        self._items, self._load = items, load

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._load(self._items[index])
