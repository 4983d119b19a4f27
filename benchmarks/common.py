"""Helpers of the benchmarks: where a run took place, files of results, processes and models."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "examples"))


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def environment() -> dict:
    """Returns commit, versions and machine."""

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
    """Writes a file of results, with the commit, the versions and the machine of this run."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(environment() | content, indent=1) + "\n")
    return path


def results(name: str, compared: Callable[[dict], Any] = lambda run: run.get("model")) -> dict:
    """
    Reads a file of results, without the rows whose code is older than that of the others.

    Rows are comparable if one commit measured them. Of those that are to be compared, which are those for which
    `compared` returns the same, the rows of the commit that most of them have are kept. A row of the dense model stays
    in any case, because it does not depend on the code of this package.

    Returns:
        `dict`: as in the file, with `runs` as a list of rows.
    """
    found = json.loads((RESULTS / f"{name}.json").read_text())
    runs = found["runs"]
    if isinstance(runs, dict):
        runs = [{"name": key} | run for key, run in runs.items()]
    # Scripts that measure all rows in one go write the commit once, for the file.
    if any("commit" in run for run in runs):
        commits = defaultdict(Counter)
        for run in runs:
            if not is_dense(run) and "commit" in run:
                commits[compared(run)][run["commit"]] += 1
        latest = {key: counts.most_common(1)[0][0] for key, counts in commits.items()}
        runs = [run for run in runs if is_dense(run) or run.get("commit", "") == latest.get(compared(run))]
    return found | {"runs": runs}


def is_dense(run: dict) -> bool:
    return "dense" in (run.get("method"), run.get("name"))


def peak_gib() -> float:
    """Returns the highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_fresh_process(script: str, *args) -> dict:
    """Runs a benchmark script for one setting, and returns the JSON that it prints on its last line."""
    command = [sys.executable, script, *map(str, args)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def dense_smollm2() -> str:
    """Returns a temporary folder with SmolLM2-135M-Instruct as a plain float32 checkpoint."""
    folder = Path(tempfile.gettempdir()) / "optimum_slicegpt_smollm2"
    if not (folder / "config.json").exists():
        from _smollm2 import load_smollm2

        model, tokenizer = load_smollm2()
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def untie(model) -> None:
    """Gives the head a matrix of its own."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
