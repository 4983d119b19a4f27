"""What a machine has room for, compared with what a run needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Machine:
    """
    The room of a machine, in bytes. `None` stands for what is not known, or not there.

    Args:
        host (`int`, *optional*): free host memory.
        device (`int`, *optional*): free memory of a device that has its own.
        disk (`int`, *optional*): free on the disk of the output.
    """

    host: int | None = None
    device: int | None = None
    disk: int | None = None

    @classmethod
    def here(cls, device: str | None, output: str | os.PathLike) -> Machine:
        """
        Returns what this machine has.

        Args:
            device (`str`, *optional*): where layers compute.
            output (`str` or `os.PathLike`): where the result will be; need not exist.
        """
        nearest = next(folder for folder in Path(output).absolute().parents if folder.exists())
        return cls(
            host=psutil.virtual_memory().available,
            device=torch.cuda.mem_get_info(device)[0] if torch.device(device or "cpu").type == "cuda" else None,
            disk=shutil.disk_usage(nearest).free,
        )


@dataclass(frozen=True)
class Room:
    """
    What a run needs of one place, and what is there.

    Args:
        parts (`dict[str, int]`): bytes that are needed, by what takes them.
        available (`int`, *optional*): bytes; `None` if nobody knows.
        remedy (`str`, *optional*): what to change where it does not fit.
    """

    parts: dict[str, int]
    available: int | None
    remedy: str | None

    @property
    def needed(self) -> int:
        return sum(self.parts.values())


def room_for(parts: Mapping[str, int], available: int | None, remedies: Mapping[str, str]) -> Room:
    """
    Compares what a run needs with what is there.

    Args:
        parts (`Mapping[str, int]`): bytes by what takes them.
        available (`int`, *optional*): bytes that are there.
        remedies (`Mapping[str, str]`): how to make parts smaller. The largest are named, as few as may be enough.

    Examples:
        >>> room_for({"a batch": 5, "activations": 9}, 10, {"a batch": "--batch-size", "activations": "--stream"})
        Room(parts={'a batch': 5, 'activations': 9}, available=10, remedy='--stream')
    """
    left = sum(parts.values())
    room, found = left if available is None else available, []
    for name in sorted(remedies.keys() & parts.keys(), key=parts.get, reverse=True):
        if left > room and remedies[name] not in found:
            found.append(remedies[name])
        left -= parts[name] * (left > room)
    if left > room:
        found.append("more of it")
    return Room(dict(parts), available, ", ".join(found) or None)
