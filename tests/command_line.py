"""Commands of `optimum-cli slicegpt`, run here or in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register import register_slicegpt


ROOT = Path(__file__).parent.parent


def parse(*arguments):
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    register_slicegpt.SliceGPTCommand(root.subparsers)
    return root.parser.parse_args(["slicegpt", *map(str, arguments)])


def run(*arguments):
    args = parse(*arguments)
    args.func(args).run()


def fails(capsys, *arguments):
    """The one line that a failing command prints."""
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    captured = capsys.readouterr()
    assert exit.value.code == 1
    assert captured.out == ""
    *_, line = captured.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in captured.err
    return line


def optimum_cli(*arguments):
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "slicegpt", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def launched(*arguments, processes=2):
    """A command in several processes."""
    return launch("-m", "optimum.commands.optimum_cli", "slicegpt", *arguments, processes=processes)


def launch(*program, processes=2):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    # `--multi_gpu` is how accelerate starts several processes; on a CPU they talk through gloo.
    command += ["--multi_gpu", "--num_processes", str(processes), "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, program)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
