"""Folders that are written whole or not at all."""

import os

import pytest

from optimum_slicegpt.storage import files
from optimum_slicegpt.storage.files import locked, written_aside


def test_an_interruption_as_soon_as_a_folder_is_there_leaves_nothing(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def make_and_be_interrupted(*args, **kwargs):
        mkdir(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", make_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "new"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_as_soon_as_the_lock_is_there_leaves_nothing(tmp_path, monkeypatch):
    def lock_and_be_interrupted(lock, **kwargs):
        acquire(lock, **kwargs)
        raise KeyboardInterrupt

    acquire = files.FileLock.acquire
    with monkeypatch.context() as patch:
        patch.setattr(files.FileLock, "acquire", lock_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "new"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_locked_whichever_of_its_folders_exist(tmp_path):
    output = tmp_path / "new" / "folder" / "sliced"
    with locked(output), pytest.raises(BlockingIOError, match="Another run is writing to"), locked(output):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_that_something_was_written_to_stay(tmp_path):
    with written_aside(tmp_path / "new" / "sliced") as folder:
        folder.mkdir()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sliced"]
