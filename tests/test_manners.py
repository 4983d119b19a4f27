"""How every command behaves: what it prints where, how it ends, and whose word it takes on what to log."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser

import datasets
import pytest
import torch
from command_line import ROOT, run
from optimum.commands.register.register_slicegpt import SliceGPTCommand
from tiny import build, calibration
from transformers.utils import logging

from optimum_slicegpt import SliceGPTConfig, console
from optimum_slicegpt.commands import compress, eval, export, inspect


COMMANDS = [command.name for command in SliceGPTCommand.SUBCOMMANDS]


@pytest.fixture
def every_command(cli_files, tmp_path, tiny_tokenizer):
    """Arguments with which commands run, and take long in the order in which they are here."""
    small = ("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16)
    build("llama", torch.float32, vocab_size=98).compress(
        SliceGPTConfig(sparsity=1 / 3, dataset=calibration())
    ).save_pretrained(tmp_path / "shared")
    tiny_tokenizer.save_pretrained(tmp_path / "shared")
    dense = ("--model", cli_files / "dense")
    return {
        "compress": ("compress", *dense, *small, "--output", tmp_path / "new"),
        "eval": ("eval", *dense, *small),
        "export": ("export", "--model", tmp_path / "shared", "--output", tmp_path / "new"),
        "inspect": ("inspect", *dense, *small, "--report", tmp_path / "new"),
    }


# What is printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_print_json(name):
    (command,) = (command.subcommand_class for command in SliceGPTCommand.SUBCOMMANDS if command.name == name)
    parser = ArgumentParser()
    command.parse_args(parser)
    assert "--json" in parser.format_help()


@pytest.mark.parametrize("name", ["compress", "eval", "export", "inspect"])
def test_json_is_all_there_is_and_nothing_moves_where_nobody_watches(name, every_command, capfd):
    run(*every_command[name], "--json")
    printed = capfd.readouterr()
    json.loads(printed.out)
    assert printed.err == ""


def test_progress_bars_of_others_are_for_terminals(monkeypatch):
    switched_off = []
    monkeypatch.setattr(logging, "disable_progress_bar", lambda: switched_off.append("transformers"))
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: switched_off.append("datasets"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console.progress_on_terminals_only()
    assert not switched_off
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    console.progress_on_terminals_only()
    assert switched_off == ["transformers", "datasets"]


# How it ends


@pytest.mark.parametrize("name", ["compress", "eval", "export", "inspect"])
def test_an_interruption_ends_with_130_and_leaves_nothing(name, every_command, tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    for module in (compress, eval, export, inspect):
        monkeypatch.setattr(module, "load_model", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit:
        run(*every_command[name])
    printed = capsys.readouterr()
    assert (exit.value.code, printed.out, printed.err.splitlines()[-1]) == (130, "", "interrupted")
    assert sorted(tmp_path.iterdir()) == before


SAVES_FOR_A_MINUTE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background hands down to ignore it
sys.path.insert(0, sys.argv[1])
from command_line import run
from transformers import PreTrainedModel

PreTrainedModel.save_pretrained = lambda *args, **kwargs: time.sleep(60)
run(*sys.argv[2:])
"""


def test_control_c_in_the_middle_of_a_run(every_command, tmp_path):
    command = [sys.executable, "-c", SAVES_FOR_A_MINUTE, ROOT / "tests", *every_command["compress"]]
    before = set(tmp_path.iterdir())
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, text=True, **pipes) as process:
        # until there is a folder to write to
        while not any(path.is_dir() for path in {*tmp_path.iterdir()} - before) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "interrupted")
    assert set(tmp_path.iterdir()) == before


# What is logged


@pytest.fixture
def level():
    """Sets the level of transformers, which is put back."""
    before = logging.get_verbosity()
    yield logging.set_verbosity
    logging.set_verbosity(before)


def compressed():
    """A run that has a warning, of few tokens, and something of interest, what a stock class can hold."""
    build("llama", torch.float32).compress(SliceGPTConfig(sparsity=1 / 3, dataset=calibration(1, batch=1)))


def test_levels_are_those_of_transformers(level, caplog):
    level(logging.ERROR)
    compressed()
    assert not caplog.records
    level(logging.WARNING)
    compressed()
    assert "fewer tokens than dimensions" in caplog.text and "stock class" not in caplog.text
    level(logging.INFO)
    compressed()
    assert "A stock class can hold this model" in caplog.text


def test_a_line_says_who_speaks():
    code = "import optimum_slicegpt.quantizer as q; q.logger.warning('loud'); q.logger.info('quiet')"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("", "[optimum-slicegpt] loud\n")


def test_what_holds_of_every_row_is_told_once(tmp_path, caplog):
    build("mixtral", torch.float32).config.save_pretrained(tmp_path)
    run("inspect", "--model", tmp_path)
    assert caplog.text.count("Site 3 is not sliced") == 1
