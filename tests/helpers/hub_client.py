"""A process that talks to a Hub other than that of the tests."""

import textwrap

from forking import ForkServer, Program


PRELUDE = """
import json, os, time
import torch
from optimum_slicegpt import SliceGPTConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

time.sleep = lambda seconds: None  # between retries
"""


class HubClient:
    """
    Runs scripts until `close()`. HF_ENDPOINT is read when huggingface_hub is imported, so this takes other processes.

    Args:
        endpoint (`str`): of the Hub.
        folder (`pathlib.Path`): where they run. Their cache is in it, too.
    """

    def __init__(self, endpoint, folder):
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_loopback"}
        self._server = ForkServer(**settings, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")
        self._folder = folder

    def run(self, script):
        """Returns a script's exit code, and what it printed, errors first."""
        code = PRELUDE + textwrap.dedent(script)
        done = Program("-c", code, folder=self._folder, server=self._server).wait()
        return done.returncode, done.stderr + done.stdout

    def close(self):
        self._server.close()
