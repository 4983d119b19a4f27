"""Folders that take long to make, and that all processes of pytest share."""

import os
import shutil

from filelock import FileLock


def make_once(tmp_path_factory, name, make):
    """
    Makes a folder once in a run of the tests, however many processes run them.

    Args:
        tmp_path_factory: pytest's.
        name (`str`): of the folder.
        make (`Callable[[Path], None]`): fills it.

    Returns:
        `Path`: the folder. Tests leave it as it is.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, made = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
