"""Commands of `optimum-cli slicegpt`, run here or in a process of their own."""

import os
import socket
import subprocess
import sys

import pytest
from forking import Program, run_program
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register import register_slicegpt
from paths import ROOT


def parse(*arguments):
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    register_slicegpt.SliceGPTCommand(root.subparsers)
    return root.parser.parse_args(["slicegpt", *map(str, arguments)])


def help_of(command):
    """Returns what a subcommand prints with `--help`."""
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    slicegpt = register_slicegpt.SliceGPTCommand(root.subparsers)
    return next(sub for sub in slicegpt.registered_subcommands if sub.COMMAND.name == command).parser.format_help()


def run(*arguments):
    args = parse(*arguments)
    args.func(args).run()


def fails(capsys, *arguments):
    """Returns the one line that a failing command prints."""
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    captured = capsys.readouterr()
    assert exit.value.code == 1
    assert captured.out == ""
    *_, line = captured.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in captured.err
    return line


def measuring(cli_files):
    """Returns those arguments of `inspect` by which it measures the stream of the dense model."""
    return ("--model", cli_files / "dense", "--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16)


OPTIMUM_CLI = ("-m", "optimum.commands.optimum_cli", "slicegpt")


def optimum_cli(*arguments):
    """Runs a command in a process of its own; returns what it printed."""
    return run_program(*OPTIMUM_CLI, *arguments)


def run_together(*arguments, processes=2):
    """Runs a command in several processes, which a launcher would have started; returns them as they ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    group["LOCAL_WORLD_SIZE"] = group["WORLD_SIZE"]
    ranks = [str(rank) for rank in range(processes)]
    started = [Program(*OPTIMUM_CLI, *arguments, RANK=rank, LOCAL_RANK=rank, **group) for rank in ranks]
    return [program.wait() for program in started]


def launch(*program, processes=2):
    """Runs a program in several processes, as `accelerate launch` starts them."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    # `--multi_gpu` is how accelerate starts several processes; on a CPU they talk through gloo.
    command += ["--multi_gpu", "--num_processes", str(processes), "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, program)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
