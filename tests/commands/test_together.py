"""`optimum-cli slicegpt compress` in several processes, as a launcher starts them."""

import json
import shutil

import pytest
import torch.distributed as dist
from command_line import launch, run, run_together
from paths import HELPERS
from safetensors.torch import load_file
from tiny import relative_error


pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not available")

TOLERANCE = 5e-4
"""Of weights, on few tokens, in float32."""


@pytest.fixture
def arguments(cli_files, tmp_path):
    small = ("--dataset", cli_files / "train.txt", "--nsamples", 7, "--seqlen", 16, "--batch-size", 2)
    small += ("--round-to", 8, "--round-neurons-to", 8)
    return ("compress", "--model", cli_files / "dense", "--output", tmp_path / "new", *small, "--json")


def test_the_command_in_two_processes(cli_files, arguments, tmp_path, capsys):
    arguments += ("--eval-dataset", cli_files / "test.txt", "--eval-seqlen", 16)
    run(*arguments)
    expected = json.loads(capsys.readouterr().out)
    one = load_file(tmp_path / "new" / "model.safetensors")
    shutil.rmtree(tmp_path / "new")

    first, second = run_together(*arguments)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == ""
    report = json.loads(first.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert report["slicegpt"]["calibration"] == expected["slicegpt"]["calibration"]
    for when in ("perplexity_before", "perplexity_after"):
        assert report[when]["perplexity"] == pytest.approx(expected[when]["perplexity"], rel=1e-5)
    two = load_file(tmp_path / "new" / "model.safetensors")
    for key, value in one.items():
        assert relative_error(two[key], value) < TOLERANCE, key


FAILS = """
import atexit, os, sys
import torch.distributed as dist
atexit.register(lambda: print("in a group:", dist.is_initialized(), file=sys.stderr))  # after what is registered later
sys.path.insert(0, {helpers!r})
from command_line import run
from optimum_slicegpt.slicing.run import Run

if os.environ["RANK"] == "1":
    def fails(self, index):
        raise ValueError("The second one cannot go on.")
    Run.layer = fails
run(*sys.argv[1:])
"""


@pytest.mark.long
def test_a_command_of_which_one_process_fails(arguments, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS.format(helpers=str(HELPERS)))
    done = launch(tmp_path / "fails.py", *arguments)
    assert done.returncode != 0 and done.stdout == ""
    assert "error: The second one cannot go on." in done.stderr
    assert "in a group: False" in done.stderr and "in a group: True" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fails.py"]
