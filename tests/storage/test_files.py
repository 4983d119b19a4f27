"""Folders that are written whole or not at all."""

import os

import pytest

from optimum_slicegpt.storage import files
from optimum_slicegpt.storage.files import file_written_aside, locked, move_into_place, written_aside


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


@pytest.fixture
def result(tmp_path):
    """Returns the folder of an earlier result."""
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "config.json").write_text('{"slicegpt": {}}')
    return folder


def test_an_earlier_result_is_replaced_once_the_new_one_is_complete(result):
    with pytest.raises(KeyboardInterrupt), written_aside(result, overwrite=True) as folder:
        folder.mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in result.iterdir()] == ["config.json"]
    with written_aside(result, overwrite=True) as folder:
        folder.mkdir()
        (folder / "new").touch()
    assert [path.name for path in result.iterdir()] == ["new"] and list(result.parent.iterdir()) == [result]


def test_results_of_several_sizes_are_replaced(result):
    (result / "config.json").unlink()
    (result / "compress.yaml").touch()
    for name in ("10", "20"):
        (result / name).mkdir()
        (result / name / "config.json").write_text('{"slicegpt": {}}')
    with written_aside(result, overwrite=True) as folder:
        folder.mkdir()
    assert not any(result.iterdir())


def test_an_earlier_result_is_put_back_where_the_new_one_cannot_take_its_place(result):
    with pytest.raises(FileNotFoundError):
        move_into_place(result.parent / "nothing", result)
    assert [path.name for path in result.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "config.json",
        "pictures.png/a.txt",
        "10/config.json",
        "compress.yaml",
        "holiday.png",
        "adapter_config.json",
    ],
)
def test_nothing_but_results_is_replaced(name, tmp_path):
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(FileExistsError, match="is no earlier result of this package, which alone is overwritten"):
        with written_aside(tmp_path / "mine", overwrite=True):
            pytest.fail("it was to be replaced")
    assert file.read_text() == "{}"


def test_a_file_is_replaced(tmp_path):
    file = tmp_path / "report.html"
    file.write_text("old")
    with pytest.raises(FileExistsError, match="give the name of a file that is absent, or overwrite it"):
        with file_written_aside(file):
            pytest.fail("it was to be replaced")
    with file_written_aside(file, overwrite=True) as aside:
        aside.write_text("new")
    assert file.read_text() == "new"
