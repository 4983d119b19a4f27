"""
Measures what a short recovery regains of a sliced model on kinds of text, and what it takes.

    python benchmarks/recovery.py --data FOLDER --dense FOLDER --sliced FOLDER [--only NAME ...] [--keep FOLDER]

The protocol of measuring, and what `--data` holds, are those of [`kinds`]. Recoveries begin with the model in
`--sliced`, and the data beside text of the dense model is WikiText-2's validation split. All of them see as many
tokens, each of which is new, unless there are too few. Kinds that more than half of the tokens were of are marked in a
row (`seen`), and left out of its mean. Every run is a process of its own. Writes `benchmarks/results/recovery.json`
after each run, and with `--keep` every model to a folder of its own. A later run with `--only` keeps the other
results.
"""

import argparse
import json
from pathlib import Path

import torch
from common import RESULTS, environment, in_fresh_process, peak_gib, write
from kinds import CHUNKS, LENGTH, excess, measure
from quality import read_record, seen_kinds
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import RecoveryConfig, recover


RECOVERIES = {
    "recovered": {},
    "own text alone": {"dataset": "self"},
    "other text alone": {"own_tokens": 0},
    "all weights": {"full": True},
    "half cross-entropy": {"distill_weight": 0.5},
    "specialist": {"distill": False},
}
"""Settings of each recovery, apart from those that all share."""
RUNS = ("dense", "sliced", *RECOVERIES)


def run(args) -> dict:
    """Loads or recovers a model, and measures it."""
    tokenizer = AutoTokenizer.from_pretrained(args.dense)
    found = {"threads": torch.get_num_threads()} | ({} if args.run == "dense" else {"commit": environment()["commit"]})
    if args.run in RECOVERIES:
        found |= recovered(args, tokenizer)
    else:
        model = AutoModelForCausalLM.from_pretrained(getattr(args, args.run), dtype=torch.bfloat16)
        found |= {"nll": measure_kinds(model, tokenizer, args)}
    return found | {"peak_gib": peak_gib()}


def recovered(args, tokenizer) -> dict:
    """Recovers the sliced model, measures it, and saves it where that is asked for."""
    settings = {"dataset": str(args.data / "wikitext-2" / "valid.txt")} | RECOVERIES[args.run]
    rate = args.learning_rate if not settings.get("full") else None
    dtype = torch.float32 if settings.get("full") else "auto"
    model = AutoModelForCausalLM.from_pretrained(args.sliced, dtype=dtype)
    config = RecoveryConfig(nsamples=args.nsamples, seqlen=args.seqlen, learning_rate=rate, patience=None, **settings)
    recover(model, tokenizer, config, teacher=args.dense if config.distill else None)
    record = model.config.slicegpt["recovery"]
    trained = record["steps"] * config.batch_size * config.gradient_accumulation * config.seqlen
    if args.keep:
        model.save_pretrained(args.keep / args.run)
        tokenizer.save_pretrained(args.keep / args.run)
    measured = measure_kinds(model.to(torch.bfloat16), tokenizer, args)
    return record | {"trained_tokens": trained, "tokens_per_s": trained / record["seconds"], "nll": measured}


def measure_kinds(model, tokenizer, args) -> dict[str, list[float]]:
    return measure(model, tokenizer, args.data, chunks=args.chunks, length=args.length)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the data sets")
    parser.add_argument("--dense", required=True, help="folder of the dense model")
    parser.add_argument("--sliced", required=True, type=Path, help="folder of the sliced model")
    parser.add_argument("--keep", type=Path, help="folder for the recovered models (default: they are not kept)")
    parser.add_argument("--nsamples", type=int, default=RecoveryConfig.nsamples, help="sequences, held-out ones too")
    parser.add_argument("--seqlen", type=int, default=RecoveryConfig.seqlen, help="tokens of a sequence")
    parser.add_argument("--learning-rate", type=float, help="of adapters (default: the package's)")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help=f"to measure on, of every kind (default: {CHUNKS})")
    parser.add_argument("--length", type=int, default=LENGTH, help=f"tokens in a chunk (default: {LENGTH})")
    parser.add_argument("--only", nargs="+", choices=RUNS, help="run these, and keep the other results")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args)))
        return

    content = {"model": Path(args.dense).resolve().name, "chunks": args.chunks, "length": args.length, "runs": {}}
    if args.only:
        content["runs"] = json.loads((RESULTS / "recovery.json").read_text())["runs"]
    given = {key: value for key, value in vars(args).items() if value is not None and key not in ("run", "only")}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    for name in args.only or RUNS:
        row = in_fresh_process(__file__, *flags, f"--run={name}")
        if name != "dense":
            seen = read_record(args.sliced)["seen"] | seen_kinds(row.get("source", ""))
            row |= excess(row["nll"], content["runs"]["dense"]["nll"], seen)
        content["runs"][name] = row
        print(write("recovery", content), name, flush=True)


if __name__ == "__main__":
    main()
