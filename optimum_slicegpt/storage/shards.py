"""Writes the weight files of a checkpoint tensor by tensor, each to its final place, and verifies them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .files import sync_folder
from .spill import ELEMENTS_AT_ONCE, bytes_of, is_finite


DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
"""Names of dtypes in safetensors, in its order: in a file, tensors of the last dtype come first."""

DEFAULT_SHARD_SIZE = "50GB"
"""The default of `save_pretrained`."""


def saved_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """
    Returns the tensors of a sliced model's checkpoint, on `meta`. It holds a tensor that two modules share once, and
    the experts of a stock class one by one.
    """
    tensors, tied = model.state_dict(), model.all_tied_weights_keys
    return revert_weight_conversion(model, {name: tensors[name].to("meta") for name in tensors if name not in tied})


@dataclass(frozen=True)
class Place:
    """The place of a tensor: `size` bytes in `file`, from byte `start` on."""

    file: Path
    start: int
    size: int


class Shards:
    """
    The weight files that `save_pretrained` would write, byte by byte.

    Args:
        folder (`Path`): holds them.
        model (`PreTrainedModel`): the sliced model; `meta` tensors will do.
        max_shard_size (`int` or `str`): of one file, as in `save_pretrained`.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, max_shard_size: int | str = DEFAULT_SHARD_SIZE):
        self.folder, self._model, self._tensors, self._written = folder, model, saved_tensors(model), set()
        pattern = SAFE_WEIGHTS_NAME.replace(".", "{suffix}.")
        # As for tensors with values: experts that were one tensor stay in one file.
        split = split_state_dict_into_shards_factory(
            self._tensors,
            get_storage_size=lambda tensor: tensor.untyped_storage().nbytes(),
            get_storage_id=lambda tensor: tensor.untyped_storage()._cdata,
            filename_pattern=pattern,
            max_shard_size=max_shard_size,
        )
        self._places, self._headers = {}, {}
        for name, tensors in split.filename_to_tensors.items():
            self._assign_places(folder / name, tensors)
        self._index = None
        if split.is_sharded:
            about = {"total_parameters": model.num_parameters(), **split.metadata}
            self._index = {"metadata": about, "weight_map": split.tensor_to_filename}

    def _assign_places(self, file: Path, names: list[str]) -> None:
        order = list(DTYPES)
        names = sorted(names, key=lambda name: (-order.index(self._tensors[name].dtype), name))
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            tensor, start = self._tensors[name], end
            end += tensor.nbytes
            offsets = {"data_offsets": [start, end]}
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)} | offsets
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._headers[file] = len(text).to_bytes(8, "little") + text
        for name in names:
            start, stop = header[name]["data_offsets"]
            self._places[name] = Place(file, len(self._headers[file]) + start, stop - start)

    @property
    def nbytes(self) -> int:
        return sum(map(len, self._headers.values())) + sum(place.size for place in self._places.values())

    def allocate(self) -> None:
        """
        Creates the files in their full size, so that a disk which is too small shows at the start. Files of an earlier
        run keep their content.

        Raises:
            OSError: they do not fit.
        """
        self.folder.mkdir(exist_ok=True)
        for path in set(self.folder.glob("*.safetensors")) - self._headers.keys():
            path.unlink()  # Other shapes, before, may have made another number of files.
        for path, header in self._headers.items():
            size = len(header) + sum(place.size for place in self._places.values() if place.file == path)
            with open(path, "r+b" if path.exists() else "w+b") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
                file.write(header)
        if self._index is not None:
            text = json.dumps(self._index, indent=2, sort_keys=True) + "\n"
            (self.folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text)
        sync_folder(self.folder)

    def write(self, name: str, tensor: Tensor) -> None:
        """
        Writes a tensor of the model, or writes it again.

        Raises:
            ValueError: it has another shape or dtype than the model's tensor, or is not finite.
        """
        for key, part in revert_weight_conversion(self._model, {name: tensor}).items():
            self._write(key, part)

    def _write(self, name: str, tensor: Tensor) -> None:
        place, expected = self._places[name], self._tensors[name]
        if (tensor.shape, tensor.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"{name} came out as {tuple(tensor.shape)} in {tensor.dtype}; the model has {tuple(expected.shape)} "
                f"in {expected.dtype}."
            )
        if not is_finite(tensor):
            raise ValueError(
                f"{name} is not finite once it is sliced; calibrate with dtype='float32' or on more text."
            )
        with open(place.file, "r+b") as file:
            file.seek(place.start)
            file.write(bytes_of(tensor.cpu().contiguous()))
        self._written.add(place.file)

    def sync(self) -> None:
        """Writes everything to the disk, so that it survives a loss of power."""
        for path in self._written:
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        self._written.clear()

    def __contains__(self, name: str) -> bool:
        return name not in self._model.all_tied_weights_keys


def verify_checkpoint(folder: Path, model: PreTrainedModel) -> None:
    """
    Reads a checkpoint once, and compares it with its model.

    Args:
        folder (`Path`): the checkpoint.
        model (`PreTrainedModel`): has the expected names, shapes and dtypes; `meta` tensors will do.

    Raises:
        ValueError: a file, or a tensor in it, is missing, damaged, too many, of another shape or dtype, or not finite.
    """
    expected, index = saved_tensors(model), folder / SAFE_WEIGHTS_INDEX_NAME
    names = dict.fromkeys(expected, SAFE_WEIGHTS_NAME)
    if index.exists():
        names = json.loads(index.read_text())["weight_map"]
    found = {}
    for name in sorted(set(names.values())):
        try:
            with safe_open(folder / name, framework="pt", backend="pread") as file:
                for key in file.keys():
                    found[key] = name
                    if key in expected:
                        _verify_tensor(key, file.get_slice(key), expected[key])
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{str(folder / name)!r} was not written whole: {error}.") from error
    odd = sorted({file.name for file in folder.glob("*.safetensors")} - set(names.values()))
    odd += sorted((names.keys() | found.keys()) ^ expected.keys()) or sorted(names.items() ^ found.items())
    if odd:
        raise ValueError(f"The checkpoint in {str(folder)!r} and its model do not agree in {odd[:3]}.")


def _verify_tensor(name, stored, expected: Tensor) -> None:
    shape, wanted = tuple(stored.get_shape()), tuple(expected.shape)
    if shape != wanted or stored.get_dtype() != DTYPES[expected.dtype]:
        raise ValueError(f"{name} was written as {shape} in {stored.get_dtype()}; the model has {wanted}.")
    count = shape[0] if shape else 1
    rows = max(1, ELEMENTS_AT_ONCE * count // expected.numel())
    parts = (stored[start : min(start + rows, count)] if shape else stored[...] for start in range(0, count, rows))
    if not all(map(is_finite, parts)):
        raise ValueError(f"{name} was written with values that are not finite; calibrate with dtype='float32'.")
