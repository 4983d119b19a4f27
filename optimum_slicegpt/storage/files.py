"""Writes output folders and files whole or not at all, replaces files at once, and locks outputs."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError


PICTURES = {
    f"{name}.png"
    for name in "cost energy_by_sparsity energy_by_width losses neurons parameters slicegpt spectrum".split()
}
"""Files that a folder of a report's pictures holds."""

RECORD = "slicegpt.json"
"""File beside an adapter, which has no `config.json`: the record of the recovery that it comes from."""


def check_output(output: Path, overwrite: bool = False) -> Path:
    """
    Checks that an output folder is absent or empty, or may be replaced, and returns its whole path.

    Args:
        output (`Path`): a folder.
        overwrite (`bool`): whether an earlier result may be replaced.

    Raises:
        FileExistsError: `output` is something else.
    """
    output = output.resolve()
    # A mount point cannot be replaced, which would show only at the end.
    if output.exists() and (not output.is_dir() or any(output.iterdir()) or output.is_mount()):
        if not overwrite:
            raise FileExistsError(
                f"Output {str(output)!r} is there already; give a folder that is absent or empty, or overwrite it "
                "(--overwrite)."
            )
        if not is_result(output):
            raise FileExistsError(
                f"Output {str(output)!r} is no earlier result of this package, which alone is overwritten; delete it "
                "yourself, or write elsewhere."
            )
    return output


def is_result(folder: Path) -> bool:
    """
    Tells whether a folder holds what this package writes: a model with a record, such models of several sizes, an
    adapter, or pictures.
    """
    if not folder.is_dir() or folder.is_mount():
        return False
    inside = [path for path in folder.iterdir() if path.name != "compress.yaml"]
    if inside and all(path.is_dir() for path in inside):
        return all(map(is_result, inside))
    config = folder / "config.json"
    if config.is_file():
        return '"slicegpt"' in config.read_text(encoding="utf-8")
    return (folder / RECORD).is_file() or all(path.is_file() and path.name in PICTURES for path in folder.iterdir())


def move_into_place(folder: Path, output: Path) -> None:
    """Renames a finished folder or file to `output`. An earlier result there ends up beside `folder`."""
    if not output.is_dir():
        folder.replace(output)
        return
    replaced = folder.with_name(f"{folder.name}.replaced")
    try:
        output.rename(replaced)
        folder.rename(output)
    except BaseException:
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        raise


def check_space(output: Path, size: int, working_folder: Path | None = None) -> None:
    """
    Checks that a disk has room for what a run writes.

    Args:
        output (`Path`): where the run writes.
        size (`int`): bytes that it writes.
        working_folder (`Path`, *optional*): what an interrupted run has left counts as written.

    Raises:
        OSError: it has not.
    """
    there = next(parent for parent in output.absolute().parents if parent.exists())
    files = working_folder.rglob("*") if working_folder else ()
    free = shutil.disk_usage(there).free + sum(file.stat().st_size for file in files if file.is_file())
    if free < size:
        raise OSError(
            f"The run writes {size / 1e6:,.1f} MB, and the disk of {str(there)!r} has {free / 1e6:,.1f} MB left; make "
            "room, or write elsewhere."
        )


@contextmanager
def saving(output: Path) -> Iterator[None]:
    """
    Has a write that fails say where the model is then.

    Args:
        output (`Path`): as the user names it, wherever it is written aside.

    Raises:
        OSError: a write failed: the disk is full, for example.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Cannot write to {str(output)!r}: {str(error).rstrip('.')}. Make room, or write elsewhere; in Python the "
            "model is still there, sliced as it is: save it with save_pretrained."
        ) from error


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """
    Keeps other runs from writing to `output`, for the time of a computation, in which the folder around it exists.

    Raises:
        BlockingIOError: another run writes to it.
    """
    absent = [parent for parent in output.parents if not parent.exists()]
    lock = FileLock(output.parent / f".{output.name}.lock")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise BlockingIOError(
                f"Another run is writing to {str(output)!r}; wait for it, or give another output."
            ) from error
        yield
    finally:
        if lock.is_locked:
            if os.name == "posix":  # other systems cannot delete a file that is open
                os.unlink(lock.lock_file)
            lock.release()
        for parent in absent:
            with suppress(OSError):  # It is not empty.
                parent.rmdir()


@contextmanager
def written_aside(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    Yields a folder to write to, which becomes `output` at the end. After an error nothing of it is left, and an
    earlier result is what it was.

    Raises:
        BlockingIOError: another run writes to `output`.
        FileExistsError: `output` is something else than an empty folder, or than what may be replaced.
    """
    with _written_aside(check_output(output, overwrite)) as folder:
        yield folder


@contextmanager
def _written_aside(output: Path) -> Iterator[Path]:
    # The name is known before the folder exists, so that an interruption at any moment leaves none.
    aside = output.parent / f".{output.name}.{secrets.token_hex(4)}"
    with locked(output):
        try:
            aside.mkdir(mode=0o700)
            yield aside / output.name
            move_into_place(aside / output.name, output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def file_written_aside(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    Yields a file to write to, which becomes `output` at the end. After an error nothing of it is left, and an earlier
    file is what it was.

    Raises:
        BlockingIOError: another run writes to `output`.
        FileExistsError: `output` exists, and is no file that may be replaced.
    """
    if output.exists() and not (overwrite and output.is_file()):
        raise FileExistsError(
            f"Output {str(output)!r} is there already; give the name of a file that is absent, or overwrite it "
            "(--overwrite)."
        )
    with _written_aside(output.resolve()) as file:
        yield file


def write_durably(path: Path, text: str) -> None:
    """Replaces a file with one that survives a loss of power. Readers see the old file or the new one, whole."""
    aside = path.with_suffix(".new")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Writes the names of a folder's files to the disk, so that they survive a loss of power."""
    if os.name == "posix":  # other systems cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
