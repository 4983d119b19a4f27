"""Where a recovery was cut off, and whether it can go on from there."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..writing import write_durably
from .packing import PackedSequences


RECORD = "recovery.json"
TEACHER = "teacher"
"""Folder in that of the checkpoints, for those of a teacher that learns, too."""
VALUES_SEEN = 1024
"""So many values of a parameter, about, tell it from others."""


@contextmanager
def checkpoint_folder(
    folder: Path | None, processes: PartialState, made_with: dict[str, Any] | None
) -> Iterator[Path]:
    """
    The folder, the same for all processes; a temporary one, which goes at the end, where none is given. A run that
    begins notes there what [`check_checkpoints`] is to compare with; one that is resumed has `None`.
    """
    made = None
    if folder is None:
        made = tempfile.TemporaryDirectory(prefix="slicegpt-recovery-") if processes.is_main_process else None
        (folder,) = broadcast_object_list([made and made.name])
    folder = Path(folder).resolve()
    try:
        if made_with is not None and processes.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(folder / RECORD, json.dumps(made_with, indent=1) + "\n")
        yield folder
    finally:
        if made:
            made.cleanup()


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint of `Trainer`: it writes the state last, so one that was cut off has none."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_checkpoints(folder: Path | None, made_with: dict[str, Any], resume: bool) -> None:
    """
    Refuses to mix two runs.

    Args:
        folder (`Path`, *optional*): of checkpoints.
        made_with (`dict`): everything on which the outcome depends, as JSON can hold it.
        resume (`bool`): whether to go on with the run in that folder.

    Raises:
        ValueError: there is nothing to resume, or it was made with something else; checkpoints of another run are
            there.
    """
    if not resume:
        if folder is not None and (last_checkpoint(folder) or last_checkpoint(folder / TEACHER)):
            raise ValueError(
                f"Checkpoints of an earlier run are in {str(folder)!r}; resume to go on with it, or give another "
                "folder."
            )
        return
    if folder is None:
        raise ValueError("resume=True without checkpoints; give the folder that holds those of the earlier run.")
    record = folder / RECORD
    if not record.is_file() or not _is_json(record):
        raise ValueError(f"No recovery was begun in {str(folder)!r}; give its folder, or do not resume.")
    begun_with = json.loads(record.read_text())
    for key, value in json.loads(json.dumps(made_with)).items():
        if begun_with.get(key) != value:
            raise ValueError(
                f"The recovery in {str(folder)!r} was begun with {key}={begun_with.get(key)!r}, and this one has "
                f"{value!r}; resume with the same, or begin in another folder."
            )


def data_fingerprint(sequences: PackedSequences) -> str:
    """Of all tokens and labels, in order."""
    digest = hashlib.sha256()
    for part in (sequences.train, sequences.held_out):
        digest.update(f"{len(part)} ".encode())
        for sequence in part:
            digest.update(torch.stack([sequence["input_ids"], sequence["labels"]]).numpy().tobytes())
    return digest.hexdigest()


def model_fingerprint(model: PreTrainedModel) -> str:
    """Of names and shapes, and of some values of every parameter: all of a large model would take long."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        some = values[:: max(1, len(values) // VALUES_SEEN)]
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + some.cpu().double().numpy().tobytes())
    return digest.hexdigest()


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
