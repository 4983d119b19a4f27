"""Runs that die and are taken up again."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import ROOT, fails, run
from tiny import build, calibration
from torch import float32

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.on_disk import OnDisk
from optimum_slicegpt.shards import Shards
from optimum_slicegpt.streaming import StreamedRun, compress_checkpoint
from optimum_slicegpt.writing import locked


METHODS = {
    "paper": {"rotation": "per_block", "refit": False, "orientation": "random"},
    "refit": {"orientation": "random"},
    "fisher": {"metric": "fisher"},
}
STEPS = {"paper": 4, "refit": 7, "fisher": 10}
"""Of a model with two layers."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "llama"
    build("llama", float32).save_pretrained(folder)
    return folder


def config_of(method, **overrides):
    return SliceGPTConfig(**{"sparsity": 1 / 3, "dataset": calibration()} | METHODS[method] | overrides)


@pytest.fixture(scope="module")
def undisturbed(dense, tmp_path_factory):
    """The hashes that each method leads to."""
    root, found = tmp_path_factory.mktemp("undisturbed"), {}

    def undisturbed(method):
        if method not in found:
            compress_checkpoint(dense, root / method, config_of(method))
            found[method] = hashes(root / method)
        return found[method]

    return undisturbed


def hashes(folder):
    """Of all files, without the times that the configuration holds."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(found["config.json"])
    del config["slicegpt"]["seconds"]
    found["config.json"] = json.dumps(config).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


class Died(Exception):
    pass


def dying(monkeypatch, owner, name, calls, error=Died):
    """A method that raises in place of its so many-th call."""
    original, made = getattr(owner, name), []

    def dying(*args, **kwargs):
        made.append(None)
        if len(made) == calls:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize("method, step", [(method, step) for method in METHODS for step in range(1, STEPS[method])])
def test_a_run_that_dies_after_any_step_ends_in_the_same_bytes(
    dense, undisturbed, tmp_path, monkeypatch, method, step
):
    output = tmp_path / "sliced"
    with monkeypatch.context() as patch:
        dying(patch, OnDisk, "commit", step + 1)
        with pytest.raises(Died):
            compress_checkpoint(dense, output, config_of(method), max_memory="30KB")
    assert [path.name for path in tmp_path.iterdir()] == [".sliced.slicegpt"]
    assert json.loads((tmp_path / ".sliced.slicegpt" / "state.json").read_text())["done"] == step

    with monkeypatch.context() as patch:
        commits = []
        commit = OnDisk.commit
        patch.setattr(OnDisk, "commit", lambda *args: commits.append(args[-1]) or commit(*args))
        compress_checkpoint(dense, output, config_of(method), resume=True)
    assert commits == list(range(step + 1, STEPS[method] + 1))
    assert hashes(output) == undisturbed(method)
    assert [path.name for path in tmp_path.iterdir()] == ["sliced"]


@pytest.mark.parametrize("calls", [1, 2, 7, 12, 18])
def test_a_run_that_dies_while_it_writes_weights(dense, undisturbed, tmp_path, monkeypatch, calls):
    with monkeypatch.context() as patch:
        dying(patch, Shards, "write", calls)
        with pytest.raises(Died):
            compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"), resume=True)
    assert hashes(tmp_path / "sliced") == undisturbed("refit")


@pytest.mark.parametrize("name", ["verify_checkpoint", "move_into_place"])
def test_a_run_that_dies_at_the_very_end(dense, undisturbed, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        dying(patch, sys.modules[StreamedRun.__module__], name, 1)
        with pytest.raises(Died):
            compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert not (tmp_path / "sliced").exists()
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"), resume=True)
    assert hashes(tmp_path / "sliced") == undisturbed("refit")


def test_a_run_that_fails_before_its_first_step_leaves_nothing(dense, tmp_path, monkeypatch):
    dying(monkeypatch, OnDisk, "commit", 1)
    with pytest.raises(Died):
        compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_left_that_was_killed_before_its_first_step_goes(dense, undisturbed, tmp_path):
    (tmp_path / ".sliced.slicegpt" / "tensors").mkdir(parents=True)
    (tmp_path / ".sliced.slicegpt" / "tensors" / "000001.bin").write_bytes(b"half")
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert hashes(tmp_path / "sliced") == undisturbed("refit")
    assert [path.name for path in tmp_path.iterdir()] == ["sliced"]


def test_resume_without_anything_to_take_up_starts(dense, undisturbed, tmp_path):
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"), resume=True)
    assert hashes(tmp_path / "sliced") == undisturbed("refit")


@pytest.fixture
def interrupted(dense, tmp_path, monkeypatch):
    """A copy of the checkpoint, an output, and beside it what an interrupted run left."""
    copy = tmp_path / "dense"
    shutil.copytree(dense, copy)
    with monkeypatch.context() as patch:
        dying(patch, OnDisk, "commit", 5)
        with pytest.raises(Died):
            compress_checkpoint(copy, tmp_path / "sliced", config_of("refit"))
    return copy, tmp_path / "sliced"


def test_an_interrupted_run_is_not_overwritten(interrupted):
    with pytest.raises(FileExistsError, match="interrupted after 4 steps; take it up with resume=True, --resume"):
        compress_checkpoint(*interrupted, config_of("refit"))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"sparsity": 0.5}, "settings and widths"),
        ({"seed": 7}, "settings"),
        ({"dtype": "bfloat16"}, "settings"),
        ({"dataset": calibration(2)}, "calibration data"),
    ],
)
def test_other_settings_and_data_are_refused(interrupted, change, named):
    with pytest.raises(ValueError, match=rf"had other {named}; take it up as it was begun, or delete .*\.sliced"):
        compress_checkpoint(*interrupted, config_of("refit", **change), resume=True)


def test_another_model_is_refused(interrupted):
    weights = interrupted[0] / "model.safetensors"
    os.utime(weights, ns=(0, 0))
    with pytest.raises(ValueError, match="had other model; take it up"):
        compress_checkpoint(*interrupted, config_of("refit"), resume=True)


def test_other_places_for_activations_are_taken(interrupted, undisturbed):
    compress_checkpoint(*interrupted, config_of("refit"), resume=True, max_memory="1KB")
    assert hashes(interrupted[1])["model.safetensors"] == undisturbed("refit")["model.safetensors"]


def test_a_damaged_state_is_refused(interrupted):
    folder = interrupted[1].parent / ".sliced.slicegpt"
    state = (folder / "state.json").read_text()
    (folder / "state.json").write_text(state[:-10])
    with pytest.raises(ValueError, match="state of the interrupted run is damaged; delete"):
        compress_checkpoint(*interrupted, config_of("refit"), resume=True)
    (folder / "state.json").write_text(state)
    for path in (folder / "tensors").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="has been cut short; delete its folder"):
        compress_checkpoint(*interrupted, config_of("refit"), resume=True)


def test_a_second_run_into_the_same_folder_is_refused(dense, tmp_path):
    with locked(tmp_path / "sliced"), pytest.raises(BlockingIOError, match="Another run is writing to .*sliced"):
        compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert list(tmp_path.iterdir()) == []


# Processes


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_a_second_command_into_the_same_folder_is_refused(cli_files, tmp_path, capsys, more):
    arguments = ["--model", cli_files / "dense", "--dataset", cli_files / "train.txt", "--output", tmp_path / "sliced"]
    with locked(tmp_path / "sliced"):
        line = fails(capsys, "compress", *arguments, "--nsamples", 8, "--seqlen", 16, "--json", *more)
    assert "Another run is writing to" in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def streaming(cli_files, tmp_path):
    """Arguments of a quick run."""
    return [
        *("compress", "--model", cli_files / "dense", "--output", tmp_path / "sliced", "--stream", "--json"),
        *("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16, "--sparsity", 0.25),
    ]


@pytest.fixture
def start():
    """Starts a run in a process of its own; gives its id, and a function that waits for its exit status."""
    command = [sys.executable, Path(__file__).with_name("killing.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as server:

        def start(*arguments):
            print(json.dumps([str(argument) for argument in arguments]), file=server.stdin, flush=True)
            return int(server.stdout.readline()), lambda: int(server.stdout.readline())

        yield start
        server.stdin.close()


def test_killed_at_many_moments(streaming, tmp_path, start):
    _, status = start(*streaming)
    assert status() == 0
    expected = hashes(tmp_path / "sliced")
    shutil.rmtree(tmp_path / "sliced")
    moments, killed = random.Random(0), 0
    for _ in range(4):
        while not (tmp_path / "sliced").exists():
            done = steps_done(tmp_path)
            process, status = start(*streaming, "--resume")
            steps = moments.randrange(4)
            with suppress(ProcessLookupError):  # it was quicker
                while steps_done(tmp_path) < done + steps:
                    time.sleep(0.005)
                    os.kill(process, 0)
                time.sleep(moments.uniform(0, 0.1))
                os.kill(process, signal.SIGKILL)
            ended = status()
            assert ended in (0, -signal.SIGKILL)
            killed += ended != 0
        assert hashes(tmp_path / "sliced") == expected
        shutil.rmtree(tmp_path / "sliced")
    assert killed >= 4


def steps_done(folder):
    """By a run into `sliced`."""
    if (folder / "sliced").exists():
        return 100
    with suppress(FileNotFoundError):
        return json.loads((folder / ".sliced.slicegpt" / "state.json").read_text())["done"]
    return 0


def test_ctrl_c_keeps_the_state_and_says_so(streaming, tmp_path, capsys, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        dying(patch, OnDisk, "commit", 3, KeyboardInterrupt)
        with pytest.raises(SystemExit) as exit:
            run(*streaming)
    assert exit.value.code == 130
    assert "With resume=True, --resume on the command line, the same run goes on" in caplog.text
    run(*streaming, "--resume")
    assert json.loads(capsys.readouterr().out)["widths"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk, and a function that changes its size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    subprocess.run(["umount", disk], check=True)


def test_a_disk_too_small_for_the_result_is_found_at_the_start(streaming, small_disk, capsys):
    disk, _ = small_disk
    assert "No space left on device" in fails(capsys, *streaming, "--output", disk / "sliced")
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up(streaming, small_disk, tmp_path, capsys):
    disk, resize = small_disk
    run(*streaming)
    capsys.readouterr()
    weights = (tmp_path / "sliced" / "model.safetensors").stat().st_size
    resize(f"{weights // 1024 + 200}k")
    assert "No space left on device" in fails(capsys, *streaming, "--output", disk / "sliced", "--max-memory", "1KiB")
    state = json.loads((disk / ".sliced.slicegpt" / "state.json").read_text())
    assert 1 <= state["done"] < 7
    resize("4m")
    run(*streaming, "--output", disk / "sliced", "--resume")
    assert hashes(disk / "sliced") == hashes(tmp_path / "sliced")
    assert [path.name for path in disk.iterdir()] == ["sliced"]
