"""Several processes that slice one model: they share the batches, and add up what they find."""

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
"""How long processes wait for another one, which may measure a perplexity. A process that died is noticed at once."""

NUMBERS_AT_ONCE = 2**27
"""Numbers of a tensor that move at a time to where processes talk."""


def join_processes(cpu: bool) -> PartialState:
    """
    Joins the processes of a launcher. This process leaves them when it ends: threads of gloo that are still at work
    would end it with SIGABRT, even after a success.

    Args:
        cpu (`bool`): whether this process computes on the CPU.

    Returns:
        `accelerate.PartialState`: what accelerate knows of this process.
    """
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    # With NCCL, a process that leaves waits for the others, which may have failed.
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        atexit.register(state.destroy_process_group)
    return state


class Processes:
    """
    The processes of a run: those that a launcher (`accelerate launch`, `torchrun`) has started, or that share a
    process group of `torch.distributed` already. A process alone adds nothing up, and waits for nobody.

    All processes call the same methods in the same order.

    Args:
        device (`torch.device` or `str`): where statistics are. On CPUs, processes talk through gloo.

    Attributes:
        rank (`int`): number of this process, from 0.
        count (`int`): number of processes.
    """

    def __init__(self, device: torch.device | str):
        device = torch.device(device)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():  # Launchers set WORLD_SIZE.
            join_processes(cpu=device.type == "cpu")
        self.rank, self.count = 0, 1
        if dist.is_available() and dist.is_initialized():
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            served = [part.partition(":")[0] for part in dist.get_backend_config().split(",")]
            self._device = device if device.type in served else torch.device(served[0])

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """Returns this process's share of the items, which may be empty."""
        return items[self.rank :: self.count]

    def sum_(self, *tensors: Tensor) -> None:
        """Adds up each tensor over the processes, in place, in its own dtype."""
        self._exchange(dist.all_reduce, tensors)

    def agreed(self, tensor: Tensor) -> Tensor:
        """Returns the first process's tensor in all: machines differ in how they round, and in the signs of axes."""
        self._exchange(partial(dist.broadcast, src=0), [tensor])
        return tensor

    def gathered(self, value: Any = None) -> list:
        """Returns what the processes give, in their order. None goes on before all have come here."""
        found = [value] * self.count
        if self.count > 1:
            self._call(dist.all_gather_object, found, value)
        return found

    def check_alike(self, given: dict[str, Any]) -> None:
        """
        Refuses processes that would not slice the same model alike.

        Args:
            given (`dict`): values that must be the same in all processes, by the names that a message uses.

        Raises:
            ConnectionError: another process has failed.
            ValueError: a value differs.
        """
        if self.count == 1:
            return
        prints = {name: fingerprint(value) for name, value in given.items()}
        all_prints = self.gathered(prints)
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
            # What is elsewhere may be there because the device has no room for it.
            whole = tensor.device.type == self._device.type or not tensor.is_contiguous()
            for part in [tensor] if whole else tensor.view(-1).split(NUMBERS_AT_ONCE):
                exchanged = part.to(self._device).contiguous()
                self._call(operation, exchanged)
                if exchanged is not part:
                    part.copy_(exchanged)

    def _call(self, operation, *args):
        try:
            operation(*args)
        except RuntimeError as error:
            raise ConnectionError(
                f"Process {self.rank} of {self.count} has lost the others, of which one has failed; its own message "
                f"says why. The model is unchanged. {error}"
            ) from error


def fingerprint(value: Any) -> str:
    """
    Hashes a value, by which processes, or a run and its resumption, compare what they were given.

    Args:
        value: tensors on the CPU and anything that `repr` describes, in nested lists, tuples and dictionaries.

    Returns:
        `str`: SHA-256, in hexadecimal digits.

    Examples:
        >>> fingerprint({"a": 1, "b": [torch.ones(2)]}) == fingerprint({"b": [torch.ones(2)], "a": 1})
        True
        >>> fingerprint([[1, 2], [3]]) == fingerprint([[1], [2, 3]])
        False
        >>> fingerprint(torch.zeros(2).bfloat16()) == fingerprint(torch.ones(2).bfloat16())
        False
    """
    digest = hashlib.sha256()

    def update(value):
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16.
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)} ".encode())
            for item in value:
                update(item)
        elif isinstance(value, dict):
            update(sorted(value.items()))
        else:
            digest.update(repr(value).encode() + b"\0")

    update(value)
    return digest.hexdigest()
