"""
Measures what a short recovery regains of SmolLM2-135M, alone and with the dense model as the teacher.

    python benchmarks/recovery.py --train valid.txt --test test.txt --tasks tasks.jsonl [--keep FOLDER [--only NAME]]

Slices as `benchmarks/quality.py` does: the default method, a head of its own, the size of the paper's method at
sparsity 0.25. Slicing and recoveries see the training text only. All recoveries, and a teacher that is adapted first,
take the same number of steps. The held-out sequences are a part of the training text. Most recoveries see every
sequence once; the recoveries on few sequences see a quarter of them four times. So few steps need a higher learning
rate than the default. Perplexities are of the test text and of the other texts of `benchmarks/quality.py`, with
weights in bfloat16. Every run is a process of its own. Writes `benchmarks/results/recovery.json` after each run, and
with `--keep` every model to a folder of its own. A later run with `--only` reads the sliced model there, and keeps the
other results.
"""

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from common import RESULTS, dense_smollm2, environment, in_fresh_process, peak_gib, write
from quality import METHODS, SERIES, load, perplexities
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import RecoveryConfig, SliceGPTConfig, load_batches, recover


ADAPTED = {"distill": True, "adapt_teacher": True}
RECOVERIES = {
    "recovered": {},
    "distilled": {"distill": True},
    "distilled, teacher adapted": ADAPTED,
    "recovered, few sequences": {"epochs": 4},
    "distilled, teacher adapted, few sequences": {"epochs": 4} | ADAPTED,
}
RUNS = ("dense", "sliced", *RECOVERIES)
METHOD = "shared + refit + neurons"


def measure(args) -> dict:
    """Makes one model and saves it in a folder of its name. Recoveries begin with the model in `sliced`."""
    dense, folder = dense_smollm2(), Path(args.keep)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    args.model, args.series, args.dtype = dense, "untied", "bfloat16"
    start = time.perf_counter()
    if args.run == "dense":
        model, found = load(args, torch.bfloat16), {}
    elif args.run == "sliced":
        model, found = load(args, torch.float32), {}
        batches = load_batches(args.train, tokenizer, nsamples=32, seqlen=1024, batch_size=8, seed=None)
        reduction = 1 - SERIES["untied"][0.25] / model.num_parameters()
        model.compress(
            SliceGPTConfig(parameter_reduction=reduction, dataset=batches, dtype="bfloat16", **METHODS[METHOD])
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder / "sliced", dtype=torch.float32)
        settings = RECOVERIES[args.run]
        config = RecoveryConfig(
            dataset=args.train,
            nsamples=args.held_out + (args.nsamples - args.held_out) // settings.get("epochs", 1),
            seqlen=args.seqlen,
            held_out=args.held_out,
            eval_steps=args.eval_steps,
            learning_rate=args.learning_rate,
            patience=None,
            **settings,
        )
        recover(model, tokenizer, config, teacher=dense if config.distill else None)
        found = model.config.slicegpt["recovery"]
    found["minutes"] = (time.perf_counter() - start) / 60
    if args.run != "dense":
        model.save_pretrained(folder / args.run)
        tokenizer.save_pretrained(folder / args.run)
        found |= {"width": min(model.config.slicegpt["widths"]), "neurons": model.config.intermediate_size}
    found |= {
        "commit": environment()["commit"],
        "parameters": model.num_parameters(),
        "threads": torch.get_num_threads(),
        "peak_gib": peak_gib(),
    }
    return found | perplexities(args, model, tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="text file to slice and to train on")
    parser.add_argument("--test", required=True, help="text file of the same kind to measure on")
    parser.add_argument("--tasks", required=True, help="jsonl file of instructions, as Self-Instruct has them")
    parser.add_argument("--keep", help="folder for the models (default: a temporary one)")
    parser.add_argument("--nsamples", type=int, default=176, help="sequences, held-out ones included")
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--eval-steps", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--only", nargs="+", choices=RUNS, help="run these, with the sliced model in --keep")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args)))
        return

    content = {
        "model": "SmolLM2-135M-Instruct",
        "method": METHOD,
        "train": Path(args.train).name,
        "test": f"32 x 1024 tokens of {Path(args.test).name}",
        "runs": {},
    }
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as folder:
        given = vars(args) | {"keep": folder}
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items() if key not in ("run", "only")]
        if args.only:
            content["runs"] = json.loads((RESULTS / "recovery.json").read_text())["runs"]
        for name in args.only or RUNS:
            content["runs"][name] = in_fresh_process(__file__, *flags, f"--run={name}")
            print(write("recovery", content), name)


if __name__ == "__main__":
    main()
