"""
Slices SmolLM2-135M in one process and in several, each with one thread: wall time, and differences of the weights.

    python benchmarks/processes.py [--processes 2] [--nsamples 32] [--seqlen 1024] [--dataset valid.txt]

Protocol: several processes are started by `accelerate launch`. The time is that of `model.compress` in the first
process, in float32, from when all have loaded the model. Runs take turns, `--repeats` times, and the fastest of each
counts. Differences are the largest of any weight, relative to the largest entry of that weight, after the last repeat.
Writes `benchmarks/results/processes.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import dense_smollm2, peak_gib, write
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import SliceGPTConfig, load_batches
from optimum_slicegpt.distributed import Processes


METHODS = {"default": {}, "paper": {"rotation": "per_block", "refit": False, "sparsity": 0.25}}


def measure(args) -> None:
    """Slices in this process; the first one saves the weights and prints."""
    processes = Processes("cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    sizes = {"nsamples": args.nsamples, "seqlen": args.seqlen, "batch_size": args.batch_size}
    batches = load_batches(args.dataset, tokenizer, **sizes)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    config = SliceGPTConfig(dataset=batches, **METHODS[args.run])
    processes.sum_(torch.zeros(1))  # All processes have loaded the model.
    start = time.perf_counter()
    model.compress(config)
    seconds = time.perf_counter() - start
    if processes.is_first:
        save_file({name: value.contiguous() for name, value in model.named_parameters()}, args.weights)
        phases = model.config.slicegpt["seconds"]
        found = {"slicing_s": seconds, "seconds_by_phase": phases, "calibration_tokens": batches.ntokens}
        found |= {"processes": processes.count}
        print(json.dumps(found | {"peak_gib_of_the_first": peak_gib(), "threads": torch.get_num_threads()}))


def launch(count: int, *arguments) -> dict:
    # `--multi_gpu` has accelerate start several processes; on CPUs they communicate through gloo.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no"]
    launcher += ["--dynamo_backend=no", f"--num_processes={count}", "--main_process_port=0"]
    command = [sys.executable, *(launcher if count > 1 else []), __file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.strip().splitlines()[-1])


def largest_difference(one: Path, other: Path) -> float:
    one, other = load_file(one), load_file(other)
    return max(((other[name] - value).abs().max() / value.abs().max()).item() for name, value in one.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--nsamples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dataset", default="python-docs", help="name, or text file, to calibrate on")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=None, help="a dense checkpoint (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        measure(args)
        return

    model = args.model or dense_smollm2()
    given = [f"--model={model}", f"--dataset={args.dataset}", f"--nsamples={args.nsamples}"]
    given += [f"--seqlen={args.seqlen}", f"--batch-size={args.batch_size}"]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            counts = (1, args.processes)
            weights = {count: Path(folder) / f"{count}.safetensors" for count in counts}
            best = {}
            for _ in range(args.repeats):
                for count in counts:
                    found = launch(count, *given, f"--run={method}", f"--weights={weights[count]}")
                    best[count] = min(best.get(count, found), found, key=lambda each: each["slicing_s"])
            one, several = (best[count] for count in counts)
            runs += [{"method": method} | best[count] for count in counts]
            runs[-1]["time_over_one_process"] = several["slicing_s"] / one["slicing_s"]
            runs[-1]["largest_relative_difference_of_weights"] = largest_difference(*weights.values())
    sizes = {
        "model": Path(args.model).name if args.model else "SmolLM2-135M-Instruct",
        "nsamples": args.nsamples,
        "seqlen": args.seqlen,
        "repeats": args.repeats,
    }
    print(
        write("processes", sizes | {"batch_size": args.batch_size, "dataset": Path(args.dataset).name, "runs": runs})
    )


if __name__ == "__main__":
    main()
