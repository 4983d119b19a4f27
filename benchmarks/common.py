"""What every benchmark shares: the record of where it ran, and the file that it writes."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "examples"))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def environment() -> dict:
    """Commit, versions and machine."""

    def git(*args):
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--", "optimum_slicegpt", "benchmarks/*.py")),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "optimum", "peft", "numpy")},
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write(name: str, content: dict) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(environment() | content, indent=1) + "\n")
    return path


def peak_gib() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_fresh_process(script: str, *args) -> dict:
    """Runs a benchmark script for one setting; what it prints last, a line of JSON, comes back."""
    command = [sys.executable, script, *map(str, args)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def dense_smollm2() -> str:
    """A temporary folder with SmolLM2-135M-Instruct as a plain float32 checkpoint."""
    folder = Path(tempfile.gettempdir()) / "optimum_slicegpt_smollm2"
    if not (folder / "config.json").exists():
        from smollm2 import load_smollm2

        model, tokenizer = load_smollm2()
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def untie(model) -> None:
    """Gives the head a matrix of its own."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
