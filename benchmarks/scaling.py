"""
Measures how the cost of slicing grows with tokens, hidden size and layers, and how far an estimate of it is off.

    python benchmarks/scaling.py

Protocol: Llamas with random weights are sliced in memory, in bfloat16 and with random tokens, each setting in turn,
`--repeats` times, of which the fastest counts. The estimate of a run counts products of matrices only, at the speed of
a short trial on this machine; one factor for all runs is fitted to their seconds. Each run is then predicted by a fit
to all others. Writes `benchmarks/results/scaling.json`.
"""

import argparse
import math
import time

import torch
from common import write
from costs import METHODS, estimate, llama
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig


BASE = {"tokens": 8192, "hidden_size": 512, "layers": 4}
VARIED = {"tokens": (4096, 16384), "hidden_size": (256, 1024), "layers": (2, 8)}
SETTINGS = [BASE, *(BASE | {name: value} for name, values in VARIED.items() for value in values)]
SEQLEN = 512


def measure(setting: dict, method: str, repeats: int) -> dict:
    size, layers = setting["hidden_size"], setting["layers"]
    config = llama(size, size * 11 // 4, layers, size // 64, size // 64, 4096)
    ids = torch.randint(4096, (setting["tokens"] // SEQLEN, SEQLEN), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part} for part in ids.split(2)]
    seconds, phases = [], []
    for _ in range(repeats):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        start = time.perf_counter()
        model.compress(SliceGPTConfig(dataset=batches, **METHODS[method]))
        seconds.append(time.perf_counter() - start)
        phases.append(model.config.slicegpt["seconds"])
    fastest = seconds.index(min(seconds))
    found = {"seconds": seconds[fastest], "seconds_by_phase": phases[fastest]}
    found["planned_s"] = estimate(config, method, setting["tokens"], 2 * SEQLEN).seconds
    return {"method": method} | setting | found


def fit_factor(runs: list[dict]) -> float:
    """Returns the geometric mean of the ratios of measured to estimated seconds."""
    return math.exp(sum(math.log(run["seconds"] / run["planned_s"]) for run in runs) / len(runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()

    runs = []
    for setting in SETTINGS:
        for method in METHODS:
            runs.append(measure(setting, method, args.repeats))
            print(runs[-1], flush=True)
    for run in runs:
        others = [other for other in runs if other is not run]
        run["predicted_over_measured"] = fit_factor(others) * run["planned_s"] / run["seconds"]

    about = {"seqlen": SEQLEN, "taken_over_planned": fit_factor(runs)}
    print(write("scaling", about | {"runs": runs}))


if __name__ == "__main__":
    main()
