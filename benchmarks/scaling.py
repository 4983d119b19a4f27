"""
Measures how the cost of slicing grows with tokens, hidden size and layers, and estimates it for large models.

    python benchmarks/scaling.py

Protocol: Llamas with random weights are sliced in memory, in bfloat16 and with random tokens, each setting in turn,
`--repeats` times, of which the fastest counts. The estimate of a run counts products of matrices only, at the speed of
a short trial on this machine; one factor for all runs is fitted to their seconds. Each run is then predicted by a fit
to all others. The costs of large models come from the same estimate, with that factor or with rates of an H100. Writes
`benchmarks/results/scaling.json`.
"""

import argparse
import math
import time
from dataclasses import asdict

import torch
from common import write
from transformers import AutoModelForCausalLM, LlamaConfig

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.decoder import empty_model
from optimum_slicegpt.slicing.estimate import RunEstimate, estimate_run


METHODS = {
    "paper": {"rotation": "per_block", "refit": False, "sparsity": 0.25},
    "shared": {"refit": False, "parameter_reduction": 0.25},
    "default": {"parameter_reduction": 0.25},
}
BASE = {"tokens": 8192, "hidden_size": 512, "layers": 4}
VARIED = {"tokens": (4096, 16384), "hidden_size": (256, 1024), "layers": (2, 8)}
SETTINGS = [BASE, *(BASE | {name: value} for name, values in VARIED.items() for value in values)]
SEQLEN = 512

LARGE = {
    "Llama-2-7B": (4096, 11008, 32, 32, 32, 32000),
    "Llama-3-70B": (8192, 28672, 80, 64, 8, 128256),
    "Llama-3.1-405B": (16384, 53248, 126, 128, 8, 128256),
}
"""Hidden size, neurons, layers, heads, key-value heads, vocabulary."""
CALIBRATION, MAX_MEMORY = (128, 2048), 16 * 2**30
"""Number and length of sequences; bytes of activations and moments in memory while a large model is streamed."""
H100 = {"bfloat16": 495e12, "float32": 33e12, "float64": 33e12}
"""Half of the operations per second in its data sheet (SXM; float64 on its tensor cores)."""


def llama(hidden_size, neurons, layers, heads, kv_heads, vocab_size) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


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


def estimate(config: LlamaConfig, method: str, tokens: int, tokens_per_batch: int, max_memory=None) -> RunEstimate:
    settings, model = SliceGPTConfig(**METHODS[method]), empty_model(config).to(torch.bfloat16)
    return estimate_run(model, SlicePlan.from_config(settings, config), settings, tokens, tokens_per_batch, max_memory)


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

    slower, (sequences, seqlen) = fit_factor(runs), CALIBRATION
    costs = []
    for name, sizes in LARGE.items():
        for method in METHODS:
            expected = estimate(llama(*sizes), method, sequences * seqlen, seqlen, MAX_MEMORY)
            on = {"this machine": slower * expected.seconds}
            on["H100"] = sum(count / H100[dtype] for dtype, count in expected.flops.items())
            costs.append({"model": name, "method": method} | asdict(expected) | {"seconds": on})
    about = {"seqlen": SEQLEN, "taken_over_planned": slower, "H100_flops_per_s": H100}
    about |= {"calibration": f"{sequences} x {seqlen} tokens", "max_memory": MAX_MEMORY}
    print(write("scaling", about | {"runs": runs, "costs": costs}))


if __name__ == "__main__":
    main()
