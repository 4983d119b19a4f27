"""The interface of storages, and the storage in memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration import SliceGPTConfig


ALIGNMENT = 64
"""Bytes. On CPUs, products of matrices round as their operands are aligned; new tensors are aligned like this."""


class Storage(Protocol):
    """
    The place where a run finds the weights of the dense model, keeps activations, and leaves what is finished.

    Attributes:
        home (`torch.device`): where weights are before and after a computation.
        on_disk (`bool`): whether loading and committing take time of their own, which a run reports.
    """

    home: torch.device
    on_disk: bool

    def loaded(self, names: Iterable[str]) -> AbstractContextManager[None]:
        """
        Loads the values of modules of the dense model, aligned in memory, for the time of a computation.

        Args:
            names (`Iterable[str]`): of the modules, with all that is in them.
        """

    def keep(self, tensor: Tensor) -> Any:
        """
        Puts a tensor away.

        Args:
            tensor (`torch.Tensor`): contiguous; nobody changes it from here on.

        Returns:
            Something that has the tensor's `shape` and the `device` where it is, and whose `to(device)` is the tensor.
        """

    def restore(self, device: torch.device) -> dict[str, Any] | None:
        """
        Reads what the last [`Storage.commit`] of an interrupted run has left.

        Args:
            device (`torch.device`): gets the tensors of the state; what [`Storage.keep`] returned stays put away.

        Returns:
            `dict`: `state`, and `done`, the number of steps that led to it. `None` if there is nothing to resume.
        """

    def allocate(self, sliced: PreTrainedModel) -> None:
        """
        Makes room for the sliced model, before its first weight is written, and again if shapes change.

        Args:
            sliced (`PreTrainedModel`): without values on `meta`; has its final names, shapes and dtypes.
        """

    def commit(self, sliced: PreTrainedModel, state: dict[str, Any], done: int) -> None:
        """
        Saves what a step has done. Every weight that the sliced model has is final.

        Args:
            sliced (`PreTrainedModel`): may lose its values to the storage.
            state (`dict`): numbers, tensors and what [`Storage.keep`] returned, in nested dictionaries and lists.
            done (`int`): number of steps that are done.
        """


class InMemory:
    """
    A [`Storage`] whose dense and sliced models are in memory. It has nothing to resume from.

    Args:
        model (`PreTrainedModel`): the dense model.
        config ([`SliceGPTConfig`]): says where to compute, and where to keep activations.
    """

    on_disk = False

    def __init__(self, model: PreTrainedModel, config: SliceGPTConfig):
        self.home = model.device
        self._model = model
        self._kept_on = torch.device("cpu" if config.offload_activations else config.device or self.home)

    @contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """Aligns the values, which are in memory."""
        moved = []
        try:
            for name in names:
                for parameter in self._model.get_submodule(name).parameters():
                    if parameter.data_ptr() % ALIGNMENT:  # a file that is mapped holds weights at any address
                        moved.append((parameter, parameter.data))
                        parameter.data = parameter.data.clone()
            yield
        finally:
            for parameter, data in moved:
                parameter.data = data

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._kept_on)

    def restore(self, device: torch.device) -> None:
        return None

    def allocate(self, sliced: PreTrainedModel) -> None:
        pass

    def commit(self, sliced: PreTrainedModel, state: dict[str, Any], done: int) -> None:
        pass


def release_freed_memory() -> None:
    """
    Returns memory to the system that has been freed. The C library of Linux keeps it where something that is still in
    use lies behind, as every sliced weight does behind the activations of its layer: a tenth of the peak and more.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # musl has none
    if trim is not None:
        trim(0)
