"""Writes output folders and files whole or not at all, replaces files at once, and locks outputs."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def check_output(output: Path) -> Path:
    """
    Checks that an output folder is absent or empty, and returns its whole path.

    Raises:
        FileExistsError: `output` is something else.
    """
    output = output.resolve()
    # A mount point cannot be replaced, which would show only at the end.
    if output.exists() and (not output.is_dir() or any(output.iterdir()) or output.is_mount()):
        raise FileExistsError(f"Output {str(output)!r} is there already; give a folder that is absent or empty.")
    return output


def move_into_place(folder: Path, output: Path) -> None:
    """Renames a finished folder to `output`, which is absent or empty."""
    if output.exists():
        output.rmdir()
    folder.rename(output)


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
def written_aside(output: Path) -> Iterator[Path]:
    """
    Yields a folder to write to, which becomes `output` at the end. After an error nothing of it is left.

    Raises:
        BlockingIOError: another run writes to `output`.
        FileExistsError: `output` is something else than an empty folder.
    """
    output = check_output(output)
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
def file_written_aside(output: Path) -> Iterator[Path]:
    """
    Yields a file to write to, which becomes `output` at the end. After an error nothing of it is left.

    Raises:
        BlockingIOError: another run writes to `output`.
        FileExistsError: `output` exists.
    """
    if output.exists():
        raise FileExistsError(f"Output {str(output)!r} is there already; give the name of a file that is absent.")
    with written_aside(output) as file:
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
