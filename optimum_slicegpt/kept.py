"""Tensors that wait for their use in memory, as far as a budget goes, and otherwise in files."""

import os
from itertools import count
from pathlib import Path

import torch
from torch import Tensor


ELEMENTS_AT_ONCE = 2**22
"""Elements looked at together, where a tensor may be as large as memory."""


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, which are its own."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def all_finite(tensor: Tensor) -> bool:
    return all(part.isfinite().all() for part in tensor.reshape(-1).split(ELEMENTS_AT_ONCE))


class Shelf:
    """
    Keeps tensors on the CPU.

    Args:
        folder (`Path`): holds the files of those that do not fit into memory, and of those that are saved.
        budget (`int`): bytes that may be in memory.
    """

    def __init__(self, folder: Path, budget: int):
        self.folder, self.budget, self.in_memory = folder, budget, 0
        taken = [int(path.stem) for path in folder.glob("*.bin")]
        self._numbers = count(max(taken, default=0) + 1)

    def keep(self, tensor: Tensor) -> "Kept":
        return Kept(self, tensor.shape, tensor.dtype, tensor=tensor.detach().cpu().contiguous())

    def taken_up(self, name: str, shape: list[int], dtype: str) -> "Kept":
        """A tensor that an earlier run has saved as [`Kept.save`] says."""
        return Kept(self, torch.Size(shape), getattr(torch, dtype), path=self.folder / name)

    def new_path(self) -> Path:
        return self.folder / f"{next(self._numbers):06d}.bin"


class Kept:
    """
    A tensor on a shelf, made by [`Shelf.keep`]. Its file, if it has one, goes when it goes, unless it is saved.

    Attributes:
        shape (`torch.Size`), dtype (`torch.dtype`): of the tensor.
    """

    def __init__(
        self,
        shelf: Shelf,
        shape: torch.Size,
        dtype: torch.dtype,
        tensor: Tensor | None = None,
        path: Path | None = None,
    ):
        self.shape, self.dtype = shape, dtype
        self._shelf, self._tensor, self._path, self._saved = shelf, None, path, path is not None
        if tensor is None:
            return
        if shelf.in_memory + tensor.nbytes <= shelf.budget:
            self._tensor = tensor
            shelf.in_memory += tensor.nbytes
        else:
            self._write(tensor)

    def to(self, device: torch.device | str) -> Tensor:
        """
        The tensor, on some device.

        Raises:
            ValueError: its file has been cut short.
        """
        if self._tensor is not None:
            return self._tensor.to(device)
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with open(self._path, "rb") as file:
            if file.readinto(as_bytes(tensor)) != tensor.nbytes:
                raise ValueError(f"{str(self._path)!r} has been cut short; delete its folder, and start again.")
        return tensor.to(device)

    def save(self) -> dict:
        """
        Puts the tensor where it survives this process and a loss of power.

        Returns:
            `dict`: arguments of [`Shelf.taken_up`].
        """
        if self._path is None:
            self._write(self._tensor)
        if not self._saved:
            with open(self._path, "r+b") as file:
                os.fsync(file.fileno())
            self._saved = True
        return {"name": self._path.name, "shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}

    def _write(self, tensor):
        self._path = self._shelf.new_path()
        with open(self._path, "wb") as file:
            file.write(as_bytes(tensor))

    def __del__(self):
        if self._tensor is not None:
            self._shelf.in_memory -= self._tensor.nbytes
        if self._path is not None and not self._saved:
            self._path.unlink(missing_ok=True)
