"""`optimum-cli slicegpt compress --stream`: its plan, and commands that are killed or run out of disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest
from command_line import OPTIMUM_CLI, fails, optimum_cli, run
from configurations import LLAMA_70B
from forking import Program
from interruptions import die_at_call, hash_files

from optimum_slicegpt.storage.files import locked
from optimum_slicegpt.storage.on_disk import OnDisk


@pytest.mark.parametrize(
    "more, message",
    [
        (["--max-shard-size", "large"], r"'large' is no size; give a number with a unit"),
        (["--stream", "--max-memory", "5"], r"'5' is no size"),
        (["--stream", "--dataset", "self"], r"A model that is streamed cannot write, and 0 of 8 sequences"),
    ],
)
def test_flags_that_do_not_go_together(cli_files, tmp_path, capsys, more, message):
    data = ("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16)
    model = ("--model", cli_files / "dense", "--output", tmp_path / "sliced")
    assert message in fails(capsys, "compress", *model, *data, *more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_a_plan_alone(cli_files, tmp_path, capsys, more):
    arguments = ["compress", "--model", cli_files / "dense", "--output", tmp_path / "sliced", "--plan", *more]
    run(*arguments, "--nsamples", 8, "--seqlen", 16)
    printed = capsys.readouterr().out
    assert "passes over the weights: 1 (slicing)" in printed
    assert "fits into" in printed and "time, estimated: " in printed
    assert ("saved after each layer" in printed) == bool(more)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "sliced" / "earlier").mkdir(parents=True)  # A plan may be made beside a result.
    run(*arguments, "--json")
    assert json.loads(capsys.readouterr().out)["passes"]


def test_a_plan_for_a_machine_that_one_does_not_have(tmp_path, capsys):
    LLAMA_70B.save_pretrained(tmp_path / "large")
    arguments = ["compress", "--model", tmp_path / "large", "--output", tmp_path / "sliced", "--plan", "--stream"]
    run(*arguments, "--device-memory", "80GB", "--host-memory", "64GB")
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if line)
    assert "-20" in lines["parameters"] and "of 28,672 neurons in each MLP" in lines["parameters"]
    assert lines["device memory, estimated"].endswith("fits into 74.51 GiB")
    assert lines["host memory, estimated"].endswith("fits into 59.60 GiB")
    assert lines["disk, estimated"].endswith("not compared")
    assert lines["time, estimated"].startswith("unknown, as the device is not here")
    run(*arguments, "--device-memory", "12GB", "--json")
    assert json.loads(capsys.readouterr().out)["room"]["device memory"]["remedy"] == "--refine 0"
    run(*arguments, "--device-memory", "12GB", "--refine", "0", "--json")
    room = json.loads(capsys.readouterr().out)["room"]
    assert room["device memory"]["remedy"] is None and room["host memory"]["available"] is None
    assert room["host memory"]["parts"]["a regression instead of the device"] > 2**33


@pytest.mark.parametrize("architecture", ["stock", "sliced"])
def test_streaming_tells_its_plan_first_and_what_became_of_it(architecture, cli_files, tmp_path, capsys):
    arguments = ["compress", "--model", cli_files / "dense", "--output", tmp_path / "sliced", "--stream"]
    arguments += ["--architecture", architecture]
    run(*arguments, "--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16)
    printed = capsys.readouterr().out
    assert printed.index("passes over the weights") < printed.index("The model shrank")
    names = {path.name for path in (tmp_path / "sliced").iterdir()}
    assert names >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert ("modeling_sliced.py" in names) == (architecture == "sliced")


# Interruptions


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_a_second_command_into_the_same_folder_is_refused(cli_files, tmp_path, capsys, more):
    arguments = ["--model", cli_files / "dense", "--dataset", cli_files / "train.txt", "--output", tmp_path / "sliced"]
    with locked(tmp_path / "sliced"):
        line = fails(capsys, "compress", *arguments, "--nsamples", 8, "--seqlen", 16, "--json", *more)
    assert "Another run is writing to" in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def streaming(cli_files, tmp_path):
    """Returns the arguments of a quick run."""
    return [
        *("compress", "--model", cli_files / "dense", "--output", tmp_path / "sliced", "--stream", "--json"),
        *("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16, "--sparsity", 0.25),
    ]


@pytest.mark.long
def test_killed_at_many_moments(streaming, tmp_path):
    optimum_cli(*streaming)
    expected = hash_files(tmp_path / "sliced")
    shutil.rmtree(tmp_path / "sliced")
    moments, killed = random.Random(0), 0
    for _ in range(4):
        while not (tmp_path / "sliced").exists():
            done = steps_done(tmp_path)
            run = Program(*OPTIMUM_CLI, *streaming, "--resume")
            steps = moments.randrange(4)
            while steps_done(tmp_path) < done + steps and run.poll() is None:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.1))
            if run.poll() is None:
                os.kill(run.process, signal.SIGKILL)
            ended = run.wait().returncode
            assert ended in (0, -signal.SIGKILL)
            killed += ended != 0
        assert hash_files(tmp_path / "sliced") == expected
        shutil.rmtree(tmp_path / "sliced")
    assert killed >= 4


def steps_done(folder):
    """Returns the number of steps that a run into `sliced` has finished."""
    if (folder / "sliced").exists():
        return 100
    with suppress(FileNotFoundError):
        return json.loads((folder / ".sliced.slicegpt" / "state.json").read_text())["done"]
    return 0


def test_ctrl_c_keeps_the_state_and_says_so(streaming, tmp_path, capsys, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        die_at_call(patch, OnDisk, "commit", 3, KeyboardInterrupt)
        with pytest.raises(SystemExit) as exit:
            run(*streaming)
    assert exit.value.code == 130
    assert "With resume=True, --resume on the command line, the same run continues" in caplog.text
    run(*streaming, "--resume")
    assert json.loads(capsys.readouterr().out)["widths"]


@pytest.fixture
def small_disk(tmp_path):
    """Returns a disk, and a function that changes its size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    subprocess.run(["umount", disk], check=True)


def test_a_disk_too_small_for_the_result_is_found_at_the_start(streaming, small_disk, capsys):
    disk, _ = small_disk
    message = "The run writes 0.2 MB, and the disk of"
    assert message in fails(capsys, *streaming, "--output", disk / "sliced")
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up(streaming, small_disk, tmp_path, capsys):
    disk, resize = small_disk
    run(*streaming)
    capsys.readouterr()
    weights = (tmp_path / "sliced" / "model.safetensors").stat().st_size
    resize(f"{weights // 1024 + 120}k")
    assert "No space left on device" in fails(capsys, *streaming, "--output", disk / "sliced", "--max-memory", "1KiB")
    state = json.loads((disk / ".sliced.slicegpt" / "state.json").read_text())
    assert 1 <= state["done"] < 7
    resize("4m")
    run(*streaming, "--output", disk / "sliced", "--resume")
    assert hash_files(disk / "sliced") == hash_files(tmp_path / "sliced")
    assert [path.name for path in disk.iterdir()] == ["sliced"]
