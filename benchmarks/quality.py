"""
Measures what slicing costs a model on kinds of text that it was not calibrated on, and what it brings: size on disk,
speed, and the time and memory that slicing takes.

    python benchmarks/quality.py --data FOLDER --dense FOLDER --name NAME [--reduction 0.2 ...] [--method METHOD ...]
    python benchmarks/quality.py --data FOLDER --dense FOLDER --name NAME --folder recovered=FOLDER ...

The protocol of measuring, and what `--data` holds, are those of [`kinds`]. Models are sliced by a method at each
reduction of their parameters. Half of the calibration, `--nsamples` x 1024 tokens, are the first chunks of
WikiText-2's validation split, the other half the model writes itself; with the methods that say so all of it is
WikiText-2. `--folder` measures models that are there already. Kinds of which more than half of a calibration was, or
that a model was trained on, are marked in a row (`seen`; more of them with `--seen`), and left out of its mean.

With `--piqa` the models answer PIQA's questions as well, see [`piqa`]. Speed is that of writing 32 tokens after a
prompt of 512, in turns with the dense model. Each step runs in a process of its own, and computes in bfloat16, or with
`--dtype float32` in float32, which is faster on processors that have no bfloat16 products. `--keep` keeps the sliced
models, and slices none again that is there.

`--code FOLDER --label TEXT` slices by the package in another folder, such as a worktree of an older commit. Its rows
stand apart, as `earlier`. Rows that are in `benchmarks/results/quality.json` already stay as they are, unless
`--again` is given. Writes that file after every row.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from common import RESULTS, ROOT, in_fresh_process, peak_gib, write
from kinds import CHUNKS, LENGTH, excess, paired_difference
from kinds import measure as measure_kinds
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import SliceGPTConfig


PAPER = {"rotation": "per_block", "refit": False}
ALONE = {"own_tokens": 0}
METHODS = {
    "default": {},
    "default, WikiText-2 alone": ALONE,
    "closed form": {"refine": 0},
    "width alone": {"mlp_sparsity": 0.0},
    "width and a quarter of the neurons": {"mlp_sparsity": 0.25},
    "four fifths of the neurons": {"mlp_sparsity": 0.8},
    "neurons by layer": {"schedule": "energy"},
    "fisher": {"metric": "fisher"},
    "paper": PAPER,
    "paper, WikiText-2 alone": PAPER | ALONE,
}
KINDS = {
    "valid.txt": {"wikitext2"},
    "wikitext2": {"wikitext2"},
    "alpaca": {"tasks"},
    "python-docs": {"python-docs"},
    "python": {"python-docs", "code"},
}
"""Source of calibration or training -> the kinds of text that it is of."""
PROTOCOL = "kinds of text"
"""Marks the file of results: rows of another protocol do not stay in it."""


def slice_model(args) -> dict:
    """Slices a model by one method to one size, and saves it."""
    tokenizer = AutoTokenizer.from_pretrained(args.dense)
    model = AutoModelForCausalLM.from_pretrained(args.dense, dtype="auto")
    config = SliceGPTConfig(
        parameter_reduction=args.reduction[0],
        dataset=[str(args.data / "wikitext-2" / "valid.txt")],
        **{"nsamples": args.nsamples, "seqlen": args.length, "batch_size": 2, "seed": None, "dtype": args.dtype},
        **METHODS[args.method[0]],
    )
    start = time.perf_counter()
    model = model.compress(config, tokenizer)
    seconds = time.perf_counter() - start
    model.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    return {"compress_s": seconds, "threads": torch.get_num_threads(), "peak_gib": peak_gib()}


def measure_model(args) -> dict:
    """Measures the model of a folder."""
    tokenizer = AutoTokenizer.from_pretrained(args.dense)
    model = AutoModelForCausalLM.from_pretrained(args.output, dtype="bfloat16").to(getattr(torch, args.dtype))
    found = {
        "parameters": model.num_parameters(),
        "architecture": type(model).__name__,
        "dtype": args.dtype,
        "chunks": args.chunks,
        "length": args.length,
        "bytes_on_disk": sum(file.stat().st_size for file in args.output.glob("*.safetensors")),
        "nll": measure_kinds(model, tokenizer, args.data, chunks=args.chunks, length=args.length),
    }
    if args.piqa:
        from piqa import measure as measure_piqa  # lm-eval is an extra.

        found["piqa"] = measure_piqa(model, tokenizer, args.data / "piqa", args.limit)
    return found | (measure_speed(model, args) if args.repeats else {})


def measure_speed(model, args) -> dict:
    """Measures the speed of a model, and unless it is the dense one itself, in turns with the dense model."""
    # Of older code, which slices in a process of this script, other modules may be elsewhere.
    from optimum_slicegpt.evaluation.benchmark import Settings, benchmark

    models = {"sliced": model}
    if args.output != args.dense:
        dense = AutoModelForCausalLM.from_pretrained(args.dense, dtype="bfloat16").to(getattr(torch, args.dtype))
        models = {"dense": dense} | models
    found = benchmark(models, Settings(repeats=args.repeats))
    speed = {"tokens_per_s": found.speeds[-1].decode.tokens_per_s}
    speed["prefill_tokens_per_s"] = found.speeds[-1].prefill.tokens_per_s
    for speedup in found.speedups:
        speed |= {"over_dense": speedup.decode.throughput.median}
        speed |= {"prefill_over_dense": speedup.prefill.throughput.median}
    return speed


STEPS = {"slice": slice_model, "measure": measure_model}


@contextmanager
def importing_from(folder: Path | None):
    """Lets new processes import the package from a folder."""
    before = os.environ.get("PYTHONPATH")
    if folder is not None:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH", None)
        os.environ |= {"PYTHONPATH": before} if before else {}


def read_record(folder: Path) -> dict:
    """Reads how the model of a folder was made: the columns of its row, and the kinds of text that it has seen."""
    config = json.loads((folder / "config.json").read_text())
    record = config.get("slicegpt") or {}
    calibration, recovery = record.get("calibration", {}), record.get("recovery", {})
    found = {
        "width": min(record.get("widths") or config.get("widths") or [config["hidden_size"]]),
        "neurons": record.get("neurons") or config.get("intermediate_size"),
        "calibrated_on": calibration,
        "seen": seen_kinds(calibration.get("source", "")) | seen_kinds(recovery.get("source", "")),
    }
    if record.get("seconds"):
        found |= {"slicing_s": sum(record["seconds"].values()), "seconds_by_phase": record["seconds"]}
    return found | ({"recovery": recovery} if recovery else {})


def seen_kinds(source: str) -> set[str]:
    """Returns the kinds of text of a source. Half of WikiText-2 beside text of the model does not count."""
    names = source.split(", ") if source else []
    kinds = set().union(*(KINDS.get(name, set()) for name in names))
    return kinds - ({"wikitext2"} if "self" in names else set())


def compare(row: dict, dense: dict, seen: set[str]) -> dict:
    """Adds to a row what its model loses against the dense one."""
    row |= excess(row["nll"], dense["nll"], seen)
    if "piqa" in row and "piqa" in dense:
        for metric, answers in row["piqa"]["answers"].items():
            pairs = (map(int, each) for each in (answers, dense["piqa"]["answers"][metric]))
            difference, stderr = paired_difference(*pairs)
            row["piqa"] |= {f"{metric}_difference": difference, f"{metric}_difference_stderr": stderr}
    return row


class Results:
    """
    Rows of `quality.json`, written after each that is added.

    Args:
        about (`dict`): what holds for all rows.
        again (`bool`): whether rows that are there are measured again.
    """

    def __init__(self, about: dict, again: bool):
        path = RESULTS / "quality.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        self.content = about | {"runs": [], "earlier": []}
        if found.get("protocol") == PROTOCOL:
            self.content |= {key: found[key] for key in ("runs", "earlier")}
        self.again = again

    def find(self, key: dict, part: str = "runs") -> dict | None:
        """Returns the row of a key, if there is one."""
        return next((row for row in self.content[part] if key.items() <= row.items()), None)

    def wants(self, key: dict, part: str = "runs") -> bool:
        return self.again or self.find(key, part) is None

    def add(self, row: dict, key: dict, part: str = "runs") -> None:
        """Adds a row, in place of the one with its key."""
        rows = [other for other in self.content[part] if not key.items() <= other.items()]
        methods = ["dense", *METHODS]
        rows.append(key | row)
        rows.sort(
            key=lambda row: (
                row["model"],
                row["method"] not in methods,
                methods.index(row["method"]) if row["method"] in methods else row["method"],
                row["nsamples"] or 0,
                row["reduction"] or 0.0,
            )
        )
        self.content[part] = rows
        print(write("quality", self.content), key, flush=True)


def commit_of(folder: Path) -> str:
    """Returns the commit that a folder is at."""
    command = ("git", "-C", str(folder), "rev-parse", "HEAD")
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--dense", required=True, type=Path, help="folder of the dense model")
    parser.add_argument("--name", help="of the model in results (default: the folder's)")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["default"])
    parser.add_argument("--reduction", nargs="+", type=float, default=[0.2], metavar="R", help="(default: 0.2)")
    parser.add_argument("--nsamples", type=int, default=32, help="sequences to calibrate on (default: 32)")
    parser.add_argument(
        "--folder", nargs="+", default=[], metavar="NAME=PATH", help="measure these, and slice nothing"
    )
    parser.add_argument("--seen", nargs="+", default=[], help="kinds that the models of --folder were trained on")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help=f"to measure on, of every kind (default: {CHUNKS})")
    parser.add_argument("--length", type=int, default=LENGTH, help=f"tokens in a chunk (default: {LENGTH})")
    parser.add_argument("--piqa", action="store_true", help="measure PIQA, which --data has in the folder `piqa`")
    parser.add_argument("--limit", type=int, help="number of PIQA's questions (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="of measuring speed; 0 for none (default: 3)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="to compute in")
    parser.add_argument("--keep", type=Path, help="folder for sliced models (default: a temporary one)")
    parser.add_argument("--code", type=Path, default=ROOT, help="folder of the package that slices")
    parser.add_argument("--label", help="of the code in --code")
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args)))
        return

    args.name = args.name or args.dense.resolve().name
    results = Results({"protocol": PROTOCOL}, args.again)
    options = ("data", "dense", "nsamples", "length", "chunks", "dtype", "repeats")
    given = [f"--{option}={getattr(args, option)}" for option in options]
    given += ["--piqa"] * args.piqa + ([f"--limit={args.limit}"] if args.limit else [])

    def run(step, folder, *more):
        return in_fresh_process(__file__, *given, f"--step={step}", f"--output={folder}", *more)

    def sliced(folder, method, reduction):
        """Slices unless the folder has the result, and returns the commit and the cost of slicing."""
        file = folder / "slicing.json"
        if args.again or not file.exists():
            with importing_from(None if args.code == ROOT else args.code):
                cost = run("slice", folder, f"--method={method}", f"--reduction={reduction}")
            file.write_text(json.dumps({"commit": commit_of(args.code)} | cost))
        return json.loads(file.read_text())

    measured = {"model": args.name, "method": "dense", "nsamples": None, "reduction": None}
    dense = results.find(measured) or {}
    if (dense.get("chunks"), dense.get("length")) != (args.chunks, args.length) or (args.piqa and "piqa" not in dense):
        results.add(run("measure", args.dense), measured)
        dense = results.find(measured)
    part, label = ("earlier", {"label": args.label}) if args.label else ("runs", {})
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as kept:
        for method, reduction in ((m, r) for m in args.method for r in args.reduction if not args.folder):
            key = {"model": args.name, "method": method, "nsamples": args.nsamples, "reduction": reduction} | label
            if results.wants(key, part):
                names = filter(None, (args.name, args.label, method, str(reduction), str(args.nsamples)))
                folder = Path(kept, "-".join(names).replace(" ", "_"))
                row = sliced(folder, method, reduction) | read_record(folder)
                row |= run("measure", folder)
                results.add(compare(row, dense, row["seen"]), key, part)
    for name, folder in (each.split("=", 1) for each in args.folder):
        key = {"model": args.name, "method": name, "nsamples": None, "reduction": None} | label
        if results.wants(key, part):
            row = {"commit": commit_of(args.code)} | read_record(Path(folder)) | run("measure", folder)
            results.add(compare(row, dense, row["seen"] | set(args.seen)), key, part)


if __name__ == "__main__":
    main()
