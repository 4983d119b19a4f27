"""Several processes that slice one model: which batches each of them has, and what they add up."""

import atexit
import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


PATIENCE = timedelta(days=1)
"""How long the others wait for one, which may have a perplexity to measure. One that has died is noticed at once."""


def joined(cpu: bool) -> PartialState:
    """
    What accelerate knows of this process, which has joined those of its launcher by then. It leaves them when it ends:
    threads of gloo that are still at work would end it with SIGABRT, even after a success.

    Args:
        cpu (`bool`): whether it computes on the CPU.
    """
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    # With NCCL, leaving waits for the others, which may have failed.
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        atexit.register(state.destroy_process_group)
    return state


class Processes:
    """
    The processes of a run: those that a launcher (`accelerate launch`, `torchrun`) has started, or that share a
    process group of `torch.distributed` already. A process alone adds nothing up, and waits for nobody.

    Every method is for all processes, in the same order.

    Args:
        device (`torch.device` or `str`): where statistics are. On CPUs, processes talk through gloo.

    Attributes:
        rank (`int`): which of them this one is, from 0.
        count (`int`): how many there are.
    """

    def __init__(self, device: torch.device | str):
        device = torch.device(device)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():  # as launchers say it
            joined(cpu=device.type == "cpu")
        self.rank, self.count = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            served = [part.partition(":")[0] for part in dist.get_backend_config().split(",")]
            self._device = device if device.type in served else torch.device(served[0])

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """This process's part of what all of them have. There may be nothing in it."""
        return items[self.rank :: self.count]

    def add_up(self, *tensors: Tensor) -> None:
        """Adds each tensor up over the processes, in place, in its own dtype."""
        self._exchange(dist.all_reduce, tensors)

    def agreed(self, tensor: Tensor) -> Tensor:
        """The first one's tensor, for all: machines may differ in how they round, and in the signs of axes."""
        self._exchange(partial(dist.broadcast, src=0), [tensor])
        return tensor

    def check_alike(self, given: dict[str, Any]) -> None:
        """
        Refuses processes that would not slice the same model alike.

        Args:
            given (`dict`): name -> what must be the same in all processes.

        Raises:
            ConnectionError: another process has failed.
            ValueError: something differs.
        """
        if self.count == 1:
            return
        prints, all_prints = {name: _fingerprint(value) for name, value in given.items()}, [None] * self.count
        self._call(dist.all_gather_object, all_prints, prints)
        differing = [name for name in prints if any(other[name] != all_prints[0][name] for other in all_prints)]
        if differing:
            raise ValueError(
                f"The {self.count} processes were given other {' and '.join(differing)}; give all of them the same. "
                "Calibration batches are shared out among them."
            )

    def _exchange(self, operation: Callable, tensors: Sequence[Tensor]) -> None:
        if self.count == 1:
            return
        for tensor in tensors:
            exchanged = tensor.to(self._device).contiguous()
            self._call(operation, exchanged)
            if exchanged is not tensor:
                tensor.copy_(exchanged)

    def _call(self, operation, *args):
        try:
            operation(*args)
        except RuntimeError as error:
            raise ConnectionError(
                f"Process {self.rank} of {self.count} has lost the others, of which one has failed; its own message "
                f"says why. The model is unchanged. {error}"
            ) from error


def _fingerprint(value: Any) -> str:
    digest = hashlib.sha256()

    def take(value):
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
        elif isinstance(value, list | tuple):
            for each in value:
                take(each)
        elif isinstance(value, dict):
            take(sorted(value.items()))
        else:
            digest.update(repr(value).encode())

    take(value)
    return digest.hexdigest()
