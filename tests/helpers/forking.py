"""
Programs in processes of their own, without the seconds that importing takes: they are forks of a process that has
imported everything and done nothing else.

    python forking.py

reads lines of JSON. One that describes a program starts it, and its process id is printed; for one that holds such an
id, the exit status is printed, or null while the program runs.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time

from huggingface_hub import constants
from paths import ROOT
from quickness import measure_speed_briefly


MODULES = ["accelerate", "datasets", "peft", "torch", "transformers.trainer", "optimum.commands"]
MODULES += [f"optimum_slicegpt.commands.{name}" for name in ("compress", "eval", "recover")]
MODULES += ["optimum_slicegpt.recovery.fine_tuning", "matplotlib.figure", "command_line"]
"""What is imported beforehand, with all that it imports."""

TIMEOUT = 300
"""Seconds after which a program is killed."""


# The process that forks


def serve():
    for module in MODULES:
        importlib.import_module(module)
    measure_speed_briefly()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            process, status = os.waitpid(request, os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if process else None), flush=True)
            continue
        process = os.fork()
        if process == 0:
            execute(**request)
            return
        print(process, flush=True)


def execute(arguments, folder, environment, output, errors):
    """Executes what `python` would execute with these arguments: code, a module or a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.chdir(folder)
    os.environ.update(environment)
    constants.HF_HOME = os.environ["HF_HOME"]  # It was read during imports.
    first, *rest = arguments
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(first))
        runpy.run_path(first, run_name="__main__")


# Processes that ask it to


class ForkServer:
    """
    The process that forks, until `close()`.

    Args:
        environment: changes of its environment, which programs inherit.
    """

    def __init__(self, **environment):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def ask(self, request):
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has died"
        return json.loads(answer)

    def close(self):
        self._process.communicate()


@functools.cache
def default_server():
    server = ForkServer()
    atexit.register(server.close)
    return server


class Program:
    """
    A program that has been started.

    Args:
        arguments: as `python` takes them: `-c` and code, `-m` and a module, or a script, and what comes after these.
        folder (`Path`): where it runs.
        server ([`ForkServer`], *optional*): whose fork it is.
        environment: changes of the environment, for what is not read during imports.

    Attributes:
        process (`int`): its id.
    """

    def __init__(self, *arguments, folder=ROOT, server=None, **environment):
        self.arguments, self._status, self._server = [*map(str, arguments)], None, server or default_server()
        self._printed = [tempfile.NamedTemporaryFile("r", suffix=".txt") for _ in range(2)]
        output, errors = (file.name for file in self._printed)
        environment = {"HF_HOME": constants.HF_HOME} | environment
        request = {"arguments": self.arguments, "folder": str(folder), "environment": environment}
        self.process = self._server.ask(request | {"output": output, "errors": errors})

    def poll(self):
        """Returns the exit status, or `None` while the program runs."""
        if self._status is None:
            self._status = self._server.ask(self.process)
        return self._status

    def wait(self):
        """Waits for the end; returns the exit status and what was printed (`subprocess.CompletedProcess`)."""
        until = time.monotonic() + TIMEOUT
        while self.poll() is None:
            time.sleep(0.01)
            if time.monotonic() > until:
                os.kill(self.process, signal.SIGKILL)
                raise TimeoutError(f"{self.arguments} took more than {TIMEOUT} s")
        return subprocess.CompletedProcess(self.arguments, self._status, *(file.read() for file in self._printed))


def run_program(*arguments, **kwargs):
    """
    Runs a [`Program`] and returns what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    done = Program(*arguments, **kwargs).wait()
    sys.stderr.write(done.stderr)
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    serve()
