"""A process that talks to a Hub other than that of the tests."""

import json
import os
import subprocess
import sys
import textwrap


# What a process that talks to it runs: one script after another, each in a fork that has imported everything
# and done nothing. HF_ENDPOINT is read when huggingface_hub is imported, so it cannot be this process.
CLIENT = """
import json, os, sys, time, traceback
import torch
from optimum_slicegpt import SliceGPTConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

time.sleep = lambda seconds: None  # between retries
for line in sys.stdin:
    script, log = json.loads(line)
    if os.fork() == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 0
        try:
            exec(script)
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


class HubClient:
    """
    Runs scripts until `close()`.

    Args:
        endpoint (`str`): of the Hub.
        folder (`pathlib.Path`): where they run. Their cache is in it, too.
    """

    def __init__(self, endpoint, folder):
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_loopback",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.log = folder / "log.txt"
        self.process = subprocess.Popen([sys.executable, "-c", CLIENT], cwd=folder, env=os.environ | settings, **pipes)

    def run(self, script):
        """A script's exit code, and what it printed."""
        self.process.stdin.write(json.dumps([textwrap.dedent(script), str(self.log)]) + "\n")
        self.process.stdin.flush()
        code = self.process.stdout.readline()
        assert code, "the client died"
        return int(code), self.log.read_text()

    def close(self):
        self.process.communicate()
