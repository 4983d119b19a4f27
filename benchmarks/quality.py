"""
Measures each method on SmolLM2-135M at equal size: perplexity on text of the calibration's kind and of other kinds,
size on disk, speed, time and memory of slicing.

    python benchmarks/quality.py --calibration valid.txt --test test.txt --tasks seed_tasks.jsonl [--only NAME ...]

Protocol: a file is one text, tokenised once without special tokens and cut into chunks of 1024; the first 32 chunks of
one calibrate, the first 32 of the other measure, with weights in bfloat16. The other texts are instructions with their
answers, and Python's documentation. Speed is that of writing 32 tokens after a prompt of 512. Every setting runs in a
process of its own, and computes in bfloat16. With `--dtype float32` it computes in float32, which is faster on
processors that have no bfloat16 products. Widths are any number, not multiples of 8 as by default, or sizes would not
be equal. Two series:

- `untied`: the head has a matrix of its own, as a stock architecture needs it. Sizes are those of the models that the
  authors' code makes at sparsity 0.1 (larger than dense), 0.2, 0.25 and 0.3.
- `tied`: the head shares the embedding's matrix, as in the dense model. Sizes are 10, 20, 25 and 30 % below the dense
  model, and that of the authors' model at sparsity 0.3, which alone of theirs is below it.

Runs that are in `benchmarks/results/quality.json` already are kept, unless `--only` names their method. Writes that
file after every run, and at the end `quality.png` beside it, with the runs of one commit.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, dense_smollm2, environment, in_fresh_process, peak_gib, results, untie, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches
from optimum_slicegpt.evaluation.benchmark import Settings, benchmark


PAPER = {"rotation": "per_block", "refit": False, "metric": "none"}
SHARED = {"rotation": "shared", "refit": True, "metric": "none"}
HALF_OWN = {"beside": "self"}
"""Half of the sequences are of the calibration text, half are written by the model."""
METHODS = {
    "paper": PAPER,
    "per_block + refit": PAPER | {"refit": True, "mlp_sparsity": 0.0},
    "shared + refit": SHARED | {"mlp_sparsity": 0.0},
    "shared + refit + neurons": SHARED,
    "shared + refit + neurons, fisher": SHARED | {"metric": "fisher"},
    "shared + refit + neurons by layer": SHARED | {"schedule": "energy"},
    "shared + refit + neurons by layer, fisher": SHARED | {"schedule": "energy", "metric": "fisher"},
    "shared + refit, fisher": SHARED | {"metric": "fisher", "mlp_sparsity": 0.0},
    "shared + refit + neurons, 64 chunks": SHARED | {"nsamples": 64},
    "shared + refit + neurons, 128 chunks": SHARED | {"nsamples": 128},
    "shared + refit + neurons, own text": SHARED | {"dataset": "self"},
    "shared + refit + neurons, half own text": SHARED | HALF_OWN,
    "shared + refit + neurons, 64 chunks, half own text": SHARED | {"nsamples": 64} | HALF_OWN,
    "shared + refit, fisher, half own text": SHARED | {"metric": "fisher", "mlp_sparsity": 0.0} | HALF_OWN,
}
SERIES = {"untied": {0.1: 163_708_928, 0.2: 147_489_984, 0.25: 140_652_288, 0.3: 131_641_088}}
"""Parameters of the models that the authors' code makes, by sparsity. Their perplexities on the same tokens:"""
AUTHORS = {0.1: 27.13, 0.2: 36.35, 0.25: 41.07, 0.3: 49.36}
TIED_REDUCTIONS = (0.2, 0.1, 0.3, 0.25)
EVERYWHERE = ("paper", "shared + refit + neurons")
"""Methods that run at every size. The others run at 0.25 of the first series, with two exceptions:"""
WITH_GRADIENTS = "shared + refit + neurons, fisher"
"""Runs at every size of that series, and at the authors' size of the other."""
BY_LAYER = ("shared + refit + neurons by layer", "shared + refit + neurons by layer, fisher")
"""Run at every size of that series."""


def load(args, dtype):
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    if args.series == "untied":
        untie(model)
    return model


def load_test_texts(args, tokenizer) -> dict:
    sizes = {"seqlen": 1024, "batch_size": 4, "seed": None}
    tasks = [json.loads(line) for line in Path(args.tasks).read_text().splitlines()]
    tasks = [
        "\n".join(filter(None, (task["instruction"], example["input"], example["output"])))
        for task in tasks
        for example in task["instances"]
    ]
    return {
        "wikitext2": load_batches(args.test, tokenizer, nsamples=32, **sizes),
        "tasks": load_batches(["\n\n".join(tasks)], tokenizer, nsamples=12, **sizes),
        "python-docs": load_batches("python-docs", tokenizer, split="test", nsamples=7, **sizes),
    }


def perplexities(args, model, tokenizer) -> dict:
    """Measures the perplexity on every test text, with weights rounded to bfloat16."""
    model = model.to(torch.bfloat16).to(getattr(torch, args.dtype))
    return {
        name: evaluate_perplexity(model, text).perplexity for name, text in load_test_texts(args, tokenizer).items()
    }


def cost_of_use(model) -> dict:
    """Measures size on disk in bfloat16 and speed of writing in the dtype of the model."""
    speed = benchmark({"model": model}, Settings(repeats=3)).speeds[0]
    with tempfile.TemporaryDirectory() as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return {"bytes_on_disk": size, "tokens_per_s": speed.decode.tokens_per_s}


def measure(args) -> dict:
    """Measures one method at one size."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.method == "dense":
        model = load(args, torch.bfloat16)
        found = {"parameters": model.num_parameters()} | perplexities(args, model, tokenizer)
        return found | cost_of_use(model.to(getattr(torch, args.dtype)))
    model = load(args, torch.float32)
    settings = {
        "parameter_reduction": 1 - args.parameters / model.num_parameters(),
        "dataset": args.calibration,
        **{"nsamples": 32, "seqlen": 1024, "batch_size": 2, "seed": None, "dtype": args.dtype},
        **{"round_to": 8, "round_neurons_to": 8},  # Methods are compared at equal sizes.
        **METHODS[args.method],
    }
    if "beside" in settings:
        settings["dataset"] = [settings["dataset"], settings.pop("beside")]
    start = time.perf_counter()
    model.compress(SliceGPTConfig(**settings), tokenizer)
    found = {
        "width": min(model.config.slicegpt["widths"]),
        "neurons": model.config.slicegpt["neurons"] or model.config.intermediate_size,
        "neurons_by_layer": getattr(model.config, "intermediate_sizes", None),
        "architecture": type(model).__name__,
        "dtype": args.dtype,
        "parameters": model.num_parameters(),
        "slicing_s": time.perf_counter() - start,
        "seconds_by_phase": model.config.slicegpt["seconds"],
        "threads": torch.get_num_threads(),
        "peak_gib": peak_gib(),
    }
    return found | perplexities(args, model, tokenizer) | cost_of_use(model.to(getattr(torch, args.dtype)))


def plot() -> Path:
    """Draws perplexity against parameters, with the runs of one commit."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, axes = plt.subplots(1, 2, figsize=(12, 4), sharey=True, layout="constrained")
    for axis, series in zip(axes, ("untied", "tied"), strict=True):
        runs = [run for run in results("quality")["runs"] if run["series"] == series]
        dense = next(run for run in runs if run["method"] == "dense")
        for index, method in enumerate(METHODS):
            points = sorted((run["parameters"] / 1e6, run["wikitext2"]) for run in runs if run["method"] == method)
            if points:
                style = {"color": f"C{index % 10}", "marker": "os"[index // 10], "linewidth": 1.5}
                axis.plot(*zip(*points, strict=True), label=method, **style)
        axis.plot(dense["parameters"] / 1e6, dense["wikitext2"], "k*", markersize=10, label="dense")
        axis.set(title=f"head {series}", xlabel="parameters, M", yscale="log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
        axis.grid(alpha=0.3, which="both")
    axes[0].set(ylabel="perplexity on WikiText-2 test")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    path = RESULTS / "quality.png"
    figure.savefig(path, dpi=150)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, help="text file to calibrate on")
    parser.add_argument("--test", required=True, help="text file of the same kind to measure on")
    parser.add_argument("--tasks", required=True, help="jsonl file of instructions, as Self-Instruct has them")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="to compute in")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=[], help="run these again, and no others")
    parser.add_argument(
        "--at", nargs="+", type=float, default=[], metavar="S", help="with --only: at these sizes alone"
    )
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--series", choices=("untied", "tied"), help="with --only: in this series alone")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--parameters", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        print(json.dumps(measure(args)))
        return

    args.model = dense_smollm2()
    given = [f"--{key}={getattr(args, key)}" for key in ("calibration", "test", "tasks", "model", "dtype")]
    path = RESULTS / "quality.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []

    def asked_for(series, method, sparsity):
        fits = method in args.only and args.series in (None, series)
        return fits and sparsity in (args.at or [sparsity])

    runs = [run for run in runs if not asked_for(run["series"], run["method"], run["sparsity"])]

    def run(series, method, sparsity=None, parameters=0):
        key = {"series": series, "method": method, "sparsity": sparsity}
        wanted = not args.only or asked_for(series, method, sparsity) or method == "dense"
        if wanted and not any(key.items() <= other.items() for other in runs):
            found = in_fresh_process(
                __file__, *given, f"--series={series}", f"--method={method}", f"--parameters={parameters}"
            )
            runs.append(key | {"commit": environment()["commit"]} | found)
            order = ("dense", *METHODS)
            runs.sort(key=lambda each: (each["series"], order.index(each["method"]), each["sparsity"] or 0))
            write("quality", about | {"runs": runs})
        return next((other for other in runs if key.items() <= other.items()), None)

    about = {
        "model": "SmolLM2-135M-Instruct",
        "calibration": f"32 x 1024 tokens of {Path(args.calibration).name}",
        "test": f"32 x 1024 tokens of {Path(args.test).name}",
        "authors": [
            {
                "sparsity": sparsity,
                "parameters": SERIES["untied"][sparsity],
                "wikitext2": perplexity,
            }
            for sparsity, perplexity in AUTHORS.items()
        ],
    }
    dense = run("tied", "dense")
    SERIES["tied"] = {share: round((1 - share) * dense["parameters"]) for share in TIED_REDUCTIONS}
    as_the_authors = round(1 - SERIES["untied"][0.3] / dense["parameters"], 4)
    SERIES["tied"][as_the_authors] = SERIES["untied"][0.3]
    untied = run("untied", "dense")
    dense_of = {"untied": untied, "tied": dense}
    at_every_size = (*reversed(EVERYWHERE), WITH_GRADIENTS, *BY_LAYER)
    settings = [("untied", method, size) for method in at_every_size for size in SERIES["untied"]]
    settings += [("tied", method, size) for method in reversed(EVERYWHERE) for size in SERIES["tied"]]
    settings += [("tied", WITH_GRADIENTS, as_the_authors)]
    settings += [("untied", method, 0.25) for method in METHODS]
    for series, method, sparsity in settings:
        if SERIES[series][sparsity] < dense_of[series]["parameters"]:  # The authors' 0.1 is larger than dense.
            run(series, method, sparsity, SERIES[series][sparsity])
    print(plot())


if __name__ == "__main__":
    main()
