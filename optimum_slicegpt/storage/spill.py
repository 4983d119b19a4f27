"""Tensors that wait for their use in memory, as far as a budget goes, and otherwise in files."""

import os
import re
from itertools import count
from pathlib import Path

import torch
from torch import Tensor


ELEMENTS_AT_ONCE = 2**22
"""Elements that are looked at together, where a tensor may be as large as memory."""


def bytes_of(tensor: Tensor) -> memoryview:
    """Returns a view of the bytes of a contiguous tensor on the CPU."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def is_finite(tensor: Tensor) -> bool:
    return all(part.isfinite().all() for part in tensor.reshape(-1).split(ELEMENTS_AT_ONCE))


class Spill:
    """
    A store of tensors on the CPU.

    Args:
        folder (`Path`): holds the files of tensors that do not fit into memory, and of tensors that are saved.
        budget (`int`): bytes that may be in memory.
    """

    def __init__(self, folder: Path, budget: int):
        self.folder, self.budget, self.in_memory = folder, budget, 0
        taken = [int(path.stem) for path in folder.glob("*.bin")]
        self._numbers = count(max(taken, default=0) + 1)

    def keep(self, tensor: Tensor) -> "KeptTensor":
        """Puts a tensor away."""
        return KeptTensor(self, tensor.shape, tensor.dtype, tensor=tensor.detach().cpu().contiguous())

    def find(self, name: str, shape: list[int], dtype: str) -> "KeptTensor":
        """
        Finds a tensor that an earlier run has saved; the arguments are what [`KeptTensor.save`] returned.

        Raises:
            ValueError: it is no file of the folder.
        """
        if not re.fullmatch(r"\d+\.bin", name):
            raise ValueError(
                f"The state of the interrupted run names {name!r}, which is no tensor in {str(self.folder)!r}; do not "
                "trust it, delete that folder and start again."
            )
        return KeptTensor(self, torch.Size(shape), getattr(torch, dtype), path=self.folder / name)

    def new_path(self) -> Path:
        return self.folder / f"{next(self._numbers):06d}.bin"


class KeptTensor:
    """
    A tensor that [`Spill.keep`] has put away. Its file, if it has one, is deleted with it, unless it is saved.

    Attributes:
        shape (`torch.Size`), dtype (`torch.dtype`): of the tensor.
        device (`torch.device`): where it is, as far as it is in memory.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        spill: Spill,
        shape: torch.Size,
        dtype: torch.dtype,
        tensor: Tensor | None = None,
        path: Path | None = None,
    ):
        self.shape, self.dtype = shape, dtype
        self._spill, self._tensor, self._path, self._saved = spill, None, path, path is not None
        if tensor is None:
            return
        if spill.in_memory + tensor.nbytes <= spill.budget:
            self._tensor = tensor
            spill.in_memory += tensor.nbytes
        else:
            self._write(tensor)

    def to(self, device: torch.device | str) -> Tensor:
        """
        Returns the tensor, on some device.

        Raises:
            ValueError: its file has been cut short.
        """
        if self._tensor is not None:
            return self._tensor.to(device)
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with open(self._path, "rb") as file:
            if file.readinto(bytes_of(tensor)) != tensor.nbytes:
                raise ValueError(f"{str(self._path)!r} has been cut short; delete its folder, and start again.")
        return tensor.to(device)

    def save(self) -> dict:
        """
        Writes the tensor to a file that survives this process and a loss of power.

        Returns:
            `dict`: arguments of [`Spill.find`].
        """
        if self._path is None:
            self._write(self._tensor)
        if not self._saved:
            with open(self._path, "r+b") as file:
                os.fsync(file.fileno())
            self._saved = True
        return {"name": self._path.name, "shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}

    def _write(self, tensor):
        self._path = self._spill.new_path()
        with open(self._path, "wb") as file:
            file.write(bytes_of(tensor))

    def __del__(self):
        if self._tensor is not None:
            self._spill.in_memory -= self._tensor.nbytes
        if self._path is not None and not self._saved:
            self._path.unlink(missing_ok=True)
