"""Keeps the checkpoints of a recovery, and checks that an interrupted one is resumed with the same arguments."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..distributed import fingerprint
from ..storage.files import write_durably
from .configuration import RecoveryConfig


if TYPE_CHECKING:
    from .packing import PackedSequences


ARGUMENTS = "recovery.json"
"""File in the folder of checkpoints: everything that the run was started with."""

TEACHER = "teacher"
"""Folder in the folder of checkpoints, for those of a teacher that is adapted first."""

VALUES_HASHED = 1024
"""About how many values of a parameter are hashed."""


@contextmanager
def checkpoint_folder(
    folder: Path | None, processes: PartialState, arguments: dict[str, Any] | None
) -> Iterator[Path]:
    """
    Yields the folder of checkpoints, the same in all processes, and writes the arguments of a run there that starts.

    Args:
        folder (`Path`, *optional*): by default a temporary folder, which is deleted at the end.
        processes (`PartialState`): the processes of the run.
        arguments (`dict`, *optional*): what [`check_checkpoints`] will compare; `None` of a run that is resumed.
    """
    temporary = None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="slicegpt-recovery-") if processes.is_main_process else None
        (folder,) = broadcast_object_list([temporary and temporary.name])
    folder = Path(folder).resolve()
    try:
        if arguments is not None and processes.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(folder / ARGUMENTS, json.dumps(arguments, indent=1) + "\n")
        yield folder
    finally:
        if temporary:
            temporary.cleanup()


def last_checkpoint(folder: Path) -> Path | None:
    """Finds the last complete checkpoint of `Trainer`, which writes `trainer_state.json` last."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_checkpoints(folder: Path | None, arguments: dict[str, Any], resume: bool) -> None:
    """
    Checks that two runs do not mix: that a run starts without checkpoints, and is resumed with the same arguments.

    Args:
        folder (`Path`, *optional*): folder of checkpoints.
        arguments (`dict`): those of [`recovery_arguments`].
        resume (`bool`): whether to continue the run in that folder.

    Raises:
        ValueError: there is nothing to resume; the run there was started with other arguments; a run is to start, and
            the folder has checkpoints.
    """
    if not resume:
        if folder is not None and (last_checkpoint(folder) or last_checkpoint(folder / TEACHER)):
            raise ValueError(
                f"Checkpoints of an earlier run are in {str(folder)!r}; resume it, or give another folder."
            )
        return
    if folder is None:
        raise ValueError("resume=True without checkpoints; give the folder that holds those of the earlier run.")
    file = folder / ARGUMENTS
    if not file.is_file() or not _is_json(file):
        raise ValueError(f"No recovery was begun in {str(folder)!r}; give its folder, or do not resume.")
    begun_with = json.loads(file.read_text())
    for key, value in json.loads(json.dumps(arguments)).items():
        if begun_with.get(key) != value:
            raise ValueError(
                f"The recovery in {str(folder)!r} was begun with {key}={begun_with.get(key)!r}, and this one has "
                f"{value!r}; resume with the same, or begin in another folder."
            )


def recovery_arguments(
    config: RecoveryConfig,
    sequences: PackedSequences,
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    processes: PartialState,
) -> dict[str, Any]:
    """
    Lists everything on which the result of a recovery depends.

    Args:
        config ([`RecoveryConfig`]): all settings.
        sequences ([`PackedSequences`]): the data, of which a hash is listed.
        model (`PreTrainedModel`), teacher (`PreTrainedModel`, *optional*): the models, of which hashes are listed.
        processes (`PartialState`): the processes, which are counted.

    Returns:
        `dict[str, Any]`: as JSON can hold it.
    """
    return config.to_dict() | {
        "dataset": sequences.source,
        "data": fingerprint([sequences.train, sequences.held_out]),
        "processes": processes.num_processes,
        "model": model_fingerprint(model),
        "teacher": teacher and model_fingerprint(teacher),
    }


def model_fingerprint(model: PreTrainedModel) -> str:
    """Hashes names, shapes and about 1024 values of each parameter; hashing all of a large model takes long."""
    sampled = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        step = max(1, len(values) // VALUES_HASHED)
        sampled[name] = tuple(parameter.shape), values[::step].cpu().double()
    return fingerprint(sampled)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
