"""Output folders and files: whole, or not there; files replaced at once; and one run at a time."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def check_output(output: Path) -> Path:
    """
    The folder's whole path.

    Raises:
        FileExistsError: it is something else than an empty folder.
    """
    output = output.resolve()
    # A mount point cannot be replaced, which would show only at the end.
    if output.exists() and (not output.is_dir() or any(output.iterdir()) or output.is_mount()):
        raise FileExistsError(f"Output {str(output)!r} is there already; give a folder that is absent or empty.")
    return output


def move_into_place(folder: Path, output: Path) -> None:
    """Gives a folder that is whole the name `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        output.rmdir()
    folder.rename(output)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """
    Keeps other runs from writing to `output`, for as long as this one does.

    Raises:
        BlockingIOError: another one does.
    """
    nearest = next(parent for parent in output.parents if parent.exists())
    lock = FileLock(nearest / f".{'.'.join(output.relative_to(nearest).parts)}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BlockingIOError(
            f"Another run is writing to {str(output)!r}; wait for it, or give another output."
        ) from error
    try:
        yield
    finally:
        if os.name == "posix":  # elsewhere a file that is open cannot go
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """
    A folder to write to, which becomes `output` at the end. Nothing of it is left if the end is not reached.

    Raises:
        BlockingIOError: another run writes to `output`.
        FileExistsError: `output` is something else than an empty folder.
    """
    output = check_output(output)
    nearest = next(parent for parent in output.parents if parent.exists())
    with locked(output), tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=nearest) as aside:
        folder = Path(aside) / output.name
        yield folder
        move_into_place(folder, output)


@contextmanager
def file_written_aside(output: Path) -> Iterator[Path]:
    """
    The same for a single file.

    Raises:
        FileExistsError: `output` is there.
    """
    if output.exists():
        raise FileExistsError(f"Output {str(output)!r} is there already; give the name of a file that is absent.")
    with written_aside(output) as file:
        yield file


def write_durably(path: Path, text: str) -> None:
    """Replaces a file by a new one that survives a loss of power. At no time is there a part of it."""
    aside = path.with_suffix(".new")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes sure that the names of a folder's files survive a loss of power."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
