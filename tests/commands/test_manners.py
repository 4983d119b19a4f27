"""How every command behaves: what it prints where, how it ends, and whose word it takes on what to log."""

import json
import os
import signal
import sys
import time
from argparse import ArgumentParser

import datasets
import pytest
import torch
from command_line import fails, parse, run
from forking import Program
from optimum.commands.register.register_slicegpt import SliceGPTCommand
from tiny import build, calibration
from transformers.utils import logging

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.commands import compress, eval, export, inspect, printing


COMMANDS = [command.name for command in SliceGPTCommand.SUBCOMMANDS]


@pytest.fixture
def every_command(cli_files, tmp_path, tiny_tokenizer):
    """Returns arguments with which commands run, the slowest command first."""
    small = ("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16)
    build("llama", torch.float32, vocab_size=98).compress(
        SliceGPTConfig(sparsity=1 / 3, architecture="sliced", dataset=calibration())
    ).save_pretrained(tmp_path / "shared")
    tiny_tokenizer.save_pretrained(tmp_path / "shared")
    dense = ("--model", cli_files / "dense")
    return {
        "compress": ("compress", *dense, *small, "--output", tmp_path / "new"),
        "eval": ("eval", *dense, *small),
        "export": ("export", "--model", tmp_path / "shared", "--output", tmp_path / "new"),
        "inspect": ("inspect", *dense, *small, "--report", tmp_path / "new.html"),
    }


# What is printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_print_json(name):
    (command,) = (command.subcommand_class for command in SliceGPTCommand.SUBCOMMANDS if command.name == name)
    parser = ArgumentParser()
    command.parse_args(parser)
    assert "--json" in parser.format_help()


@pytest.fixture
def loggers():
    """Returns the loggers of which commands set the level, and restores it afterwards."""
    loggers = [logging.get_logger(name) for name in ("transformers", "optimum_slicegpt")]
    before = [logger.level for logger in loggers]
    yield loggers
    for logger, value in zip(loggers, before, strict=True):
        logger.setLevel(value)


PHASES = {
    "compress": ["Loading", "Writing text", "Checking", "Deciding", "Slicing", "Head", "Saving"],
    "inspect": ["Loading", "Measuring", "Eigenvalues", "Drawing"],
}


@pytest.mark.parametrize("name", PHASES)
def test_json_is_alone_and_every_phase_takes_a_line_where_nobody_watches(name, every_command, capfd):
    run(*every_command[name], "--json")
    printed = capfd.readouterr()
    json.loads(printed.out)
    lines = printed.err.splitlines()
    assert {next(phase for phase in PHASES[name] if line.startswith(phase)) for line in lines} == {*PHASES[name]}
    assert "\r" not in printed.err and len(lines) < 12


@pytest.mark.parametrize("name", ["eval", "export"])
def test_nothing_but_the_result_by_request(name, every_command, capfd, loggers):
    run(*every_command[name], "--json", "--quiet")
    printed = capfd.readouterr()
    json.loads(printed.out)
    assert printed.err == ""


def test_progress_bars_of_others_are_for_terminals(monkeypatch, loggers):
    switched_off = []
    monkeypatch.setattr(logging, "disable_progress_bar", lambda: switched_off.append("transformers"))
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: switched_off.append("datasets"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    args = parse("eval", "--model", "m")
    printing.set_verbosity(args)
    assert not switched_off
    printing.set_verbosity(parse("eval", "--model", "m", "--quiet"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    printing.set_verbosity(args)
    assert switched_off == ["transformers", "datasets"] * 2


@pytest.mark.parametrize("flag, expected", [("--quiet", logging.ERROR), ("--verbose", logging.INFO)])
def test_levels_of_the_console(flag, expected, loggers, monkeypatch):
    monkeypatch.setattr(logging, "disable_progress_bar", lambda: None)
    monkeypatch.setattr(datasets, "disable_progress_bars", lambda: None)
    printing.set_verbosity(parse("eval", "--model", "m", flag))
    assert [logger.level for logger in loggers] == [expected] * 2


def test_verbose_shows_where_an_error_came_up(cli_files, capsys, loggers):
    line = ("eval", "--model", cli_files / "dense", "--dataset", cli_files / "train.txt", "--device", "cuda:99")
    with pytest.raises(ValueError, match="is not available here"):
        run(*line, "--verbose")
    assert fails(capsys, *line).startswith("error: device='cuda:99' is not available here")


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
import sys, time
from command_line import fails, parse, run
from forking import Program
from transformers import PreTrainedModel

PreTrainedModel.save_pretrained = lambda *args, **kwargs: time.sleep(60)
run(*sys.argv[1:])
"""


def test_control_c_in_the_middle_of_a_run(every_command, tmp_path):
    before = set(tmp_path.iterdir())
    program = Program("-c", SAVES_FOR_A_MINUTE, *every_command["compress"])
    # until there is a folder to write to
    while not any(path.is_dir() for path in {*tmp_path.iterdir()} - before) and program.poll() is None:
        time.sleep(0.01)
    os.kill(program.process, signal.SIGINT)
    done = program.wait()
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (130, "", "interrupted")
    assert set(tmp_path.iterdir()) == before


# What is logged


@pytest.fixture
def level():
    """Returns a function that sets the level of transformers, and restores it afterwards."""
    before = logging.get_verbosity()
    yield logging.set_verbosity
    logging.set_verbosity(before)


def log():
    """Logs a warning, that of a run that leaves little, and something of interest."""
    logging.warning_once.cache_clear()
    build("llama", torch.float32).compress(SliceGPTConfig(sparsity=0.8, dataset=calibration()))
    logging.get_logger("optimum_slicegpt.quantizer").info("Of interest")


def test_levels_are_those_of_transformers(level, caplog):
    level(logging.ERROR)
    log()
    assert not caplog.records
    level(logging.WARNING)
    log()
    assert "less than a quarter" in caplog.text and "Of interest" not in caplog.text
    level(logging.INFO)
    log()
    assert "Of interest" in caplog.text


def test_a_line_says_who_speaks():
    code = "from transformers.utils.logging import get_logger; logger = get_logger('optimum_slicegpt.quantizer')"
    done = Program("-c", f"{code}; logger.warning('loud'); logger.info('quiet')").wait()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "[optimum-slicegpt] loud\n")


def test_what_holds_of_every_row_is_told_once(tmp_path, caplog):
    build("mixtral", torch.float32).config.save_pretrained(tmp_path)
    run("inspect", "--model", tmp_path)
    assert caplog.text.count("Site 3 is not sliced") == 1
