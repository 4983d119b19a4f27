"""A storage for models larger than memory: a dense checkpoint, and the working folder of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..distributed import Processes
from ..modeling.weights import persistent_buffers
from .checkpoint import Checkpoint
from .files import sync_folder, write_durably
from .shards import Shards
from .spill import KeptTensor, Spill


STATE_FILE = "state.json"
WEIGHTS = "weights"
TENSORS = "tensors"


class OnDisk:
    """
    A [`Storage`] that reads a dense checkpoint module by module. Its working folder holds finished weights in their
    final files, and after each step the state from which the run can be resumed.

    The state is a file that is replaced once all that it names is on the disk, so that there is one at any time. Of
    several processes the first one writes it and the weights; each has a folder for its own tensors.

    Args:
        checkpoint ([`Checkpoint`]): the dense model.
        processes ([`Processes`]): those of the run.
        folder (`Path`): the working folder.
        max_memory (`int`): bytes of activations and moments in memory; the others are in files.
        max_shard_size (`int` or `str`): of a weight file.
        fingerprint (`dict`): what the run is of; saved with its state.
        saved (`dict`, *optional*): the content of the state file that an earlier run left in this folder.
    """

    on_disk = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        processes: Processes,
        folder: Path,
        *,
        max_memory: int,
        max_shard_size: int | str,
        fingerprint: dict[str, Any],
        saved: dict[str, Any] | None,
    ):
        self.home = torch.device("cpu")
        self._checkpoint, self._folder, self._max_shard_size = checkpoint, folder, max_shard_size
        self._processes, self._fingerprint, self._saved = processes, fingerprint, saved
        tensors = folder / (TENSORS if processes.is_first else f"{TENSORS}-{processes.rank}")
        tensors.mkdir(parents=True, exist_ok=True)  # Machines may share no disk.
        self._spill = Spill(tensors, max_memory)
        self._dense_empty = dict(checkpoint.model.named_parameters(remove_duplicate=False))

    @contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """Reads the parameters of modules, and forgets them afterwards."""
        values, shared = self._checkpoint.tensors(names), {}
        read = list(values)
        try:
            for name, value in values.items():
                parameter = shared.setdefault(id(value), nn.Parameter(value, requires_grad=False))
                _set_parameter(self._checkpoint.model, name, parameter)
            del values, value, shared, parameter
            yield
        finally:
            for name in read:
                _set_parameter(self._checkpoint.model, name, self._dense_empty[name])

    def keep(self, tensor: Tensor) -> KeptTensor:
        return self._spill.keep(tensor)

    def restore(self, device: torch.device) -> dict[str, Any] | None:
        if self._saved is None:
            return None
        own = self._saved["states"][self._processes.rank]
        return {"state": self._unpack(own, device), "done": self._saved["done"]}

    def allocate(self, sliced: PreTrainedModel) -> None:
        """Creates the weight files in their full size."""
        self._sliced_empty = dict(sliced.named_parameters(remove_duplicate=False))
        if self._processes.is_first:
            self._shards = Shards(self._folder / WEIGHTS, sliced, self._max_shard_size)
            self._shards.allocate()

    def commit(self, sliced: PreTrainedModel, state: dict[str, Any], done: int) -> None:
        """Writes the values that the sliced model has, takes them from it, and saves the state."""
        if self._processes.is_first:
            self._write(sliced)
        for name, parameter in list(sliced.named_parameters(remove_duplicate=False)):
            if not parameter.is_meta:
                _set_parameter(sliced, name, self._sliced_empty[name])
        needed: set[str] = set()
        packed = self._pack(state, needed)
        sync_folder(self._spill.folder)
        states = self._processes.gathered(packed)
        if self._processes.is_first:
            text = json.dumps({"fingerprint": self._fingerprint, "done": done, "states": states})
            write_durably(self._folder / STATE_FILE, text)
        self._processes.gathered()  # What the state before needs must stay until it is replaced.
        for path in self._spill.folder.iterdir():
            if path.name not in needed:
                path.unlink()

    def _write(self, sliced):
        for name, parameter in sliced.named_parameters(remove_duplicate=False):
            if not parameter.is_meta and name in self._shards:
                self._shards.write(name, parameter)
        for name, buffer in persistent_buffers(sliced).items():
            if not buffer.is_meta:
                self._shards.write(name, buffer)
        self._shards.sync()

    # Each tensor of a state is saved as a file, everything else as JSON.

    def _pack(self, value, needed):
        if isinstance(value, dict):
            return {"mapping": {key: self._pack(held, needed) for key, held in value.items()}}
        if isinstance(value, list):
            return [self._pack(held, needed) for held in value]
        if isinstance(value, KeptTensor):
            return {"tensor": self._save(value, needed), "kept": True}
        if isinstance(value, Tensor):
            # Products round as matrices lie in memory, so a matrix that is stored by columns stays so.
            by_columns = value.ndim == 2 and value.mT.is_contiguous()
            kept = self.keep(value.mT if by_columns else value)
            return {"tensor": self._save(kept, needed), "kept": False, "by_columns": by_columns}
        return value

    def _save(self, kept, needed):
        about = kept.save()
        needed.add(about["name"])
        return about

    def _unpack(self, value, device):
        if isinstance(value, list):
            return [self._unpack(held, device) for held in value]
        if not isinstance(value, dict):
            return value
        if "mapping" in value:
            return {key: self._unpack(held, device) for key, held in value["mapping"].items()}
        kept = self._spill.find(**value["tensor"])
        if value["kept"]:
            return kept
        tensor = kept.to(device)
        return tensor.mT if value["by_columns"] else tensor


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, key = name.rpartition(".")
    model.get_submodule(owner)._parameters[key] = parameter


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describes the parts of two fingerprints that differ, the settings with both values."""
    differing = [name for name in now if then.get(name) != now[name]]
    changed = [
        f"{name}: {then['settings'].get(name)!r} then, {value!r} now"
        for name, value in now["settings"].items()
        if then["settings"].get(name) != value
    ]
    return [f"settings ({'; '.join(changed)})" if name == "settings" else name for name in differing]
