"""
What `examples/recover_lora.py` regains of SmolLM2-135M sliced by 25 %.

    python benchmarks/recovery.py --train valid.txt --test test.txt [--nsamples 128]

Slices as `benchmarks/slicing.py` does, on the first 32 chunks of 1024 tokens of the training text; trains on random
chunks of the same text; measures on the first 32 chunks of the test text. Writes
`benchmarks/results/recovery_lora.json`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import ROOT, dense_smollm2, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches


SPARSITY = 0.25


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--nsamples", type=int, default=128)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(dense_smollm2())
    sizes = {"nsamples": 32, "seqlen": 1024, "seed": None}
    model = AutoModelForCausalLM.from_pretrained(dense_smollm2(), dtype=torch.bfloat16)
    dense = evaluate_perplexity(model, load_batches(args.test, tokenizer, **sizes)).perplexity
    model = AutoModelForCausalLM.from_pretrained(dense_smollm2(), dtype=torch.float32)
    model.compress(
        SliceGPTConfig(
            rotation="per_block", refit=False, sparsity=SPARSITY, dataset=args.train, dtype="bfloat16", **sizes
        ),
        tokenizer,
    )

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/sliced")
        tokenizer.save_pretrained(f"{folder}/sliced")
        command = [sys.executable, str(ROOT / "examples" / "recover_lora.py")]
        command += [f"--model={folder}/sliced", f"--output={folder}/recovered", f"--nsamples={args.nsamples}"]
        command += [f"--dataset={args.train}", f"--eval-dataset={args.test}"]
        start = time.perf_counter()
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        minutes = (time.perf_counter() - start) / 60
    figures = dict(line.rsplit(": ", 1) for line in output.splitlines() if line.startswith("perplexity "))
    content = {
        "model": "SmolLM2-135M-Instruct",
        "sparsity": SPARSITY,
        "train": Path(args.train).name,
        "test": f"32 x 1024 tokens of {Path(args.test).name}",
        "nsamples": args.nsamples,
        "seqlen": 1024,
        "dense_perplexity": dense,
        "perplexity_before": float(figures["perplexity before"]),
        "perplexity_after": float(figures["perplexity after"]),
        "minutes": minutes,
    }
    print(write("recovery_lora", content))


if __name__ == "__main__":
    main()
