"""Output folders and files: whole, or not there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """
    A folder to write to, which becomes `output` at the end. Nothing of it is left if the end is not reached.

    Raises:
        FileExistsError: `output` is something else than an empty folder.
    """
    output = check_output(output)
    nearest = next(parent for parent in output.parents if parent.exists())
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=nearest) as aside:
        folder = Path(aside) / output.name
        yield folder
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            output.rmdir()
        folder.rename(output)


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
