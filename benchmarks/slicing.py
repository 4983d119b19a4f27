"""
Slices SmolLM2-135M by the paper's method: time against one dense forward, memory, size and perplexity.

    python benchmarks/slicing.py --calibration valid.txt --test test.txt [--dtype bfloat16]

Protocol: a file is one text, tokenised once without special tokens and cut into chunks of 1024; the first 32 chunks of
one calibrate, the first 32 of the other measure, with weights in bfloat16. Every setting runs in a process of its own,
in which the dense model's layers run once over the same calibration tokens, before slicing. Writes
`benchmarks/results/slicing*.json`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from common import dense_smollm2, in_fresh_process, peak_gib, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches


def measure(args) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    sizes = {"nsamples": args.nsamples, "seqlen": 1024, "batch_size": 8, "seed": None}
    batches = load_batches(args.calibration, tokenizer, **sizes)
    # The tokeniser's and the file's memory is no part of slicing; the test text is read once slicing is done.
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    dtype = getattr(torch, args.dtype)

    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model.model(input_ids=batches.batches[0]["input_ids"][:, :64])  # first-time costs
        start = time.perf_counter()
        for batch in batches:
            model.model(**batch, use_cache=False)
        forward_s = time.perf_counter() - start

    start = time.perf_counter()
    model.compress(
        SliceGPTConfig(rotation="per_block", refit=False, sparsity=args.sparsity, dataset=batches, dtype=args.dtype)
    )
    slicing_s = time.perf_counter() - start
    record, peak = model.config.slicegpt, peak_gib()
    test = load_batches(args.test, tokenizer, **sizes | {"nsamples": 32})
    result = evaluate_perplexity(model.to(torch.bfloat16), test)
    return {
        "sparsity": args.sparsity,
        "width": min(model.config.widths),
        "parameters": record["parameters_after"],
        "parameters_dense": record["parameters_before"],
        "perplexity": result.perplexity,
        "nll_stderr": result.stderr,
        "slicing_s": slicing_s,
        "dense_forward_s": forward_s,
        "slicing_over_forward": slicing_s / forward_s,
        "seconds_by_phase": record["seconds"],
        "peak_gib": peak,
    }


def dense_perplexity(args) -> float:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    test = load_batches(args.test, tokenizer, nsamples=32, seqlen=1024, seed=None)
    return evaluate_perplexity(model, test).perplexity


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", required=True, help="text file to calibrate on")
    parser.add_argument("--test", required=True, help="text file to measure on")
    parser.add_argument("--dtype", default="float32", help="of the calibration pass")
    parser.add_argument("--nsamples", type=int, default=32)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--sparsity", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sparsity is not None:
        print(json.dumps(measure(args)))
        return
    args.model = dense_smollm2()
    given = [f"--{key}={getattr(args, key)}" for key in ("calibration", "test", "dtype", "nsamples", "model")]
    runs = [in_fresh_process(__file__, *given, f"--sparsity={sparsity}") for sparsity in (0.1, 0.2, 0.25, 0.3)]
    content = {
        "model": "SmolLM2-135M-Instruct",
        "calibration": f"{args.nsamples} x 1024 tokens of {Path(args.calibration).name}",
        "test": f"32 x 1024 tokens of {Path(args.test).name}",
        "dtype": args.dtype,
        "dense_perplexity": dense_perplexity(args),
        "runs": runs,
    }
    name = "slicing" if args.dtype == "float32" else f"slicing_{args.dtype}"
    print(write(name, content))


if __name__ == "__main__":
    main()
