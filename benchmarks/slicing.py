"""
Measures what slicing SmolLM2-135M takes: time over that of a dense forward and over a floor, memory, size, perplexity.

    python benchmarks/slicing.py --calibration valid.txt --test test.txt [--only NAME ...]

Protocol: a file is one text, tokenised once without special tokens and cut into chunks of 1024; the first chunks of
one calibrate, the first 32 of the other measure, with weights in bfloat16. Every run has a process of its own, in
which slicing and the dense layers' forward over 32 chunks in float32 take turns; ratios are medians. The floor is the
time of the operations that every implementation of the paper's method needs, as plain torch calls on the same tokens:
that forward in the run's dtype, the products for second moments, the eigen-decompositions. The last run is the
cheapest with the quality of the authors' code at its size. The effect of bfloat16 on perplexity is compared on several
parts of the calibration text, because any other rounding changes the perplexity of a single model by some 0.3 %.
Writes `benchmarks/results/slicing.json`, and keeps the runs there that `--only` does not name.
"""

import argparse
import json
import math
import time
from pathlib import Path
from statistics import mean, median, stdev

import torch
from common import RESULTS, dense_smollm2, environment, in_fresh_process, peak_gib, untie, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches


AUTHORS = {"sparsity": 0.25, "parameters": 140_652_288, "perplexity": 41.07, "slicing_over_float32_forward": 3.0}
"""Results of the authors' code on the same tokens. Its model has a matrix for the head, and shortcuts."""

PAPER = {"rotation": "per_block", "refit": False, "sparsity": 0.25, "nsamples": 32}
RUNS = {
    "paper": PAPER | {"dtype": "float32"},
    "paper, bfloat16": PAPER | {"dtype": "bfloat16"},
    "shared axes": {"rotation": "shared", "refit": False, "nsamples": 8, "dtype": "bfloat16"},
}
"""The last run has the parameters of the authors' model, and like it a matrix for the head."""
TURNS = 3
ROUNDING = "rounding"
TEXT_PARTS = 6
"""Dtypes are compared on so many parts of the calibration text, of 32 chunks each."""


def measure(args) -> dict:
    settings = dict(RUNS[args.run])  # `dtype` is that of the model, too
    dtype, paper = getattr(torch, settings["dtype"]), "sparsity" in settings
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    sizes = {"seqlen": 1024, "seed": None}
    full = load_batches(args.calibration, tokenizer, nsamples=32, batch_size=1, **sizes)
    batches = full.batches[: settings.pop("nsamples")]

    def unsliced():
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
        if not paper:
            untie(model)
        return model

    if not paper:
        settings["parameter_reduction"] = 1 - AUTHORS["parameters"] / unsliced().num_parameters()
    # The test text is read after slicing, because tokenising it takes memory that slicing does not need.
    found, turns = {}, []
    for _ in range(TURNS):
        model, start = unsliced(), time.perf_counter()
        model.compress(SliceGPTConfig(dataset=batches, **settings))
        turn = {"slicing_s": time.perf_counter() - start, "slicing_s_by_phase": model.config.slicegpt["seconds"]}
        found = found or {
            "width": min(model.config.slicegpt["widths"]),
            "parameters": model.num_parameters(),
            "dtype": settings["dtype"],
            "calibration_tokens": sum(batch["input_ids"].numel() for batch in batches),
            "peak_gib": peak_gib(),
        }
        floor = measure_floor(args, full, dtype) if paper else None
        float32 = floor if paper and dtype == torch.float32 else measure_floor(args, full, torch.float32, axes=False)
        turns.append(turn | {"float32_forward_s": float32["forward"]} | ({"floor_s_by_phase": floor} if paper else {}))
    found["slicing_over_float32_forward"] = median(turn["slicing_s"] / turn["float32_forward_s"] for turn in turns)
    if paper:
        found["slicing_over_floor"] = median(
            turn["slicing_s"] / sum(turn["floor_s_by_phase"].values()) for turn in turns
        )
    test = load_batches(args.test, tokenizer, nsamples=32, batch_size=4, **sizes)
    result = evaluate_perplexity(model.to(torch.bfloat16), test)
    return found | {"perplexity": result.perplexity, "nll_stderr": result.stderr, "turns": turns}


def measure_rounding(args) -> dict:
    """Measures models that are sliced in either dtype on parts of the text, and the mean of their log ratios."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    sizes = {"seqlen": 1024, "seed": None}
    batches = load_batches(args.calibration, tokenizer, nsamples=32 * TEXT_PARTS, batch_size=1, **sizes).batches
    test = load_batches(args.test, tokenizer, nsamples=32, batch_size=4, **sizes)

    def perplexity(dtype, part):
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
        settings = {key: value for key, value in PAPER.items() if key != "nsamples"}
        model.compress(SliceGPTConfig(dataset=batches[32 * part : 32 * part + 32], **settings))
        return evaluate_perplexity(model.to(torch.bfloat16), test).perplexity

    float32, bfloat16 = (
        [perplexity(dtype, part) for part in range(TEXT_PARTS)] for dtype in (torch.float32, torch.bfloat16)
    )
    changes = [math.log(ours / other) for ours, other in zip(bfloat16, float32, strict=True)]
    return {
        "float32": float32,
        "bfloat16": bfloat16,
        "change": mean(changes),
        "change_stderr": stdev(changes) / TEXT_PARTS**0.5,
    }


@torch.no_grad()
def measure_floor(args, batches, dtype, axes: bool = True) -> dict[str, float]:
    """Takes the time of the dense layers' forward, and of second moments and axes of all sites."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).model
    sites = 2 * model.config.num_hidden_layers + 1
    model(input_ids=batches.batches[0]["input_ids"][:, :64])  # The first forward takes longer.

    start = time.perf_counter()
    stream = [model(**batch, use_cache=False).last_hidden_state.flatten(0, 1) for batch in batches]
    seconds = {"forward": time.perf_counter() - start}
    if not axes:
        return seconds

    start = time.perf_counter()
    for _ in range(sites):
        moment = sum((tokens.T @ tokens).double() for tokens in map(torch.Tensor.float, stream))
    seconds["second moments"] = time.perf_counter() - start

    start = time.perf_counter()
    for _ in range(sites):
        torch.linalg.eigh(moment)
    return seconds | {"axes": time.perf_counter() - start}


def measure_dense(args) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    test = load_batches(args.test, tokenizer, nsamples=32, seqlen=1024, seed=None)
    return {"parameters": model.num_parameters(), "perplexity": evaluate_perplexity(model, test).perplexity}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, help="text file to calibrate on")
    parser.add_argument("--test", required=True, help="text file to measure on")
    parser.add_argument("--only", nargs="+", choices=(*RUNS, ROUNDING), default=[*RUNS, ROUNDING])
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure_rounding(args) if args.run == ROUNDING else measure(args)))
        return
    args.model = dense_smollm2()
    given = [f"--{key}={getattr(args, key)}" for key in ("calibration", "test", "model")]
    content = {
        "model": "SmolLM2-135M-Instruct",
        "calibration": f"chunks of 1024 tokens of {Path(args.calibration).name}",
        "test": f"32 x 1024 tokens of {Path(args.test).name}",
        "authors": AUTHORS,
        "dense": measure_dense(args),
    }
    path = RESULTS / "slicing.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    found = before.get("runs", {}) | {ROUNDING: before.get(ROUNDING)}
    for name in args.only:
        found[name] = {"commit": environment()["commit"]} | in_fresh_process(__file__, *given, f"--run={name}")
        print(name, found[name], flush=True)
        runs = {key: found[key] for key in RUNS if key in found}
        print(write("slicing", content | {"runs": runs, ROUNDING: found[ROUNDING]}))


if __name__ == "__main__":
    main()
