"""Where a streaming walk finds weights, keeps activations, and leaves what is finished: checkpoints, and a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .kept import Kept, Shelf
from .shards import Shards
from .writing import sync_folder, write_durably


if TYPE_CHECKING:
    from .walk import Walk


STATE = "state.json"
WEIGHTS = "weights"
TENSORS = "tensors"


class OnDisk:
    """
    A dense checkpoint, and the working folder of a run: finished weights in their final files, and after each step the
    state from which the run can be taken up.

    The state is a file that is replaced when all that it names is on the disk, so that there is one at any time.

    Args:
        checkpoint ([`Checkpoint`]): the dense model.
        folder (`Path`): the working folder.
        max_memory (`int`): bytes of activations and moments in memory; the others are in files.
        max_shard_size (`int` or `str`): of a weight file.
        fingerprint (`dict`): what the run is of, for its state.
        saved (`dict`, *optional*): the state of an earlier run in this folder.

    Attributes:
        home (`torch.device`): where weights are read to.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        *,
        max_memory: int,
        max_shard_size: int | str,
        fingerprint: dict[str, Any],
        saved: dict[str, Any] | None,
    ):
        self.home = torch.device("cpu")
        self._checkpoint, self._folder, self._max_shard_size = checkpoint, folder, max_shard_size
        self._fingerprint, self._saved = fingerprint, saved
        (folder / TENSORS).mkdir(exist_ok=True)
        self._shelf = Shelf(folder / TENSORS, max_memory)
        self._dense_empty = dict(checkpoint.model.named_parameters(remove_duplicate=False))

    @contextmanager
    def at_hand(self, walk: Walk, names: Iterable[str]) -> Iterator[None]:
        """As [`InMemory.at_hand`]: parameters are read, and forgotten."""
        with walk.phase("read"):
            values, shared = self._checkpoint.tensors(names), {}
        for name, value in values.items():
            parameter = shared.setdefault(id(value), nn.Parameter(value, requires_grad=False))
            _set_parameter(walk.dense, name, parameter)
        read = list(values)
        del values, value, shared, parameter
        try:
            yield
        finally:
            for name in read:
                _set_parameter(walk.dense, name, self._dense_empty[name])

    def keep(self, tensor: Tensor) -> Kept:
        """As [`InMemory.keep`], on the shelf."""
        return self._shelf.keep(tensor)

    def restore(self, walk: Walk) -> int:
        """As [`InMemory.restore`], from the state that was saved."""
        if self._saved is not None:
            walk.set_state(self._unpacked(self._saved["state"], walk.device))
        self.lay_out(walk)
        return 0 if self._saved is None else self._saved["done"]

    def lay_out(self, walk: Walk) -> None:
        """As [`InMemory.lay_out`]: makes room in files for what the sliced model will have."""
        self._sliced_empty = dict(walk.sliced.named_parameters(remove_duplicate=False))
        self._shards = Shards(self._folder / WEIGHTS, walk.sliced, self._max_shard_size)
        self._shards.allocate()

    def commit(self, walk: Walk, done: int) -> None:
        """Writes what the sliced model has, takes it from there, and saves the state."""
        with walk.phase("write"):
            for name, parameter in list(walk.sliced.named_parameters(remove_duplicate=False)):
                if not parameter.is_meta:
                    if name in self._shards:
                        self._shards.write(name, parameter)
                    _set_parameter(walk.sliced, name, self._sliced_empty[name])
            self._shards.sync()
            needed: set[str] = set()
            state = self._packed(walk.state(), needed)
            sync_folder(self._shelf.folder)
            text = json.dumps({"fingerprint": self._fingerprint, "done": done, "state": state})
            write_durably(self._folder / STATE, text)
            for path in self._shelf.folder.iterdir():
                if path.name not in needed:
                    path.unlink()

    # Tensors of a state are files; of the others, each is what JSON makes of it.

    def _packed(self, value, needed):
        if isinstance(value, dict):
            return {"mapping": {key: self._packed(held, needed) for key, held in value.items()}}
        if isinstance(value, list):
            return [self._packed(held, needed) for held in value]
        if isinstance(value, Tensor | Kept):
            kept = value if isinstance(value, Kept) else self.keep(value)
            about = kept.save()
            needed.add(about["name"])
            return {"tensor": about, "kept": kept is value}
        return value

    def _unpacked(self, value, device):
        if isinstance(value, list):
            return [self._unpacked(held, device) for held in value]
        if not isinstance(value, dict):
            return value
        if "mapping" in value:
            return {key: self._unpacked(held, device) for key, held in value["mapping"].items()}
        kept = self._shelf.taken_up(**value["tensor"])
        return kept if value["kept"] else kept.to(device)


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, key = name.rpartition(".")
    model.get_submodule(owner)._parameters[key] = parameter
