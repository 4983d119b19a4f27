"""
Slices a real language model, SmolLM2-135M-Instruct, and compares it with the dense model. Needs no network.

    python examples/demo.py [--reduction 0.2] [--output demo_output]

Calibrates on text that the model writes and on prose and code that Python ships, measures perplexity on other topics
and modules, saves the result, loads it in a fresh process that cannot import this package, and generates text.
"""

import argparse
import copy
import subprocess
import sys
import time
from pathlib import Path

from _smollm2 import fastest_dtype, load_smollm2

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches, save_tokenizer
from optimum_slicegpt.evaluation.benchmark import Settings, benchmark


IN_A_FRESH_PROCESS = """
import sys
sys.modules["optimum_slicegpt"] = None  # a stock model needs none of its code
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer(sys.argv[2], return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=40, do_sample=False, repetition_penalty=1.2)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
PROMPT = "The Python programming language is"


def measure(model, batches) -> dict[str, float]:
    """Measures perplexity and size in the model's dtype, in which it is also saved."""
    return {
        "perplexity": evaluate_perplexity(model, batches, progress=True).perplexity,
        "parameters, M": model.num_parameters() / 1e6,
        "size, MB": sum(parameter.nbytes for parameter in model.parameters()) / 1e6,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduction", type=float, default=0.2, help="share of the parameters to delete")
    parser.add_argument("--nsamples", type=int, default=16)
    parser.add_argument("--eval-nsamples", type=int, default=6)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7, help="passes; the speed is their median")
    parser.add_argument("--output", default="demo_output")
    args = parser.parse_args()

    dtype = fastest_dtype()
    print(f"Loading SmolLM2-135M-Instruct in {str(dtype).removeprefix('torch.')} ...")
    model, tokenizer = load_smollm2(dtype)
    held_out = load_batches(
        "python", tokenizer, split="test", nsamples=args.eval_nsamples, seqlen=args.seqlen, seed=None
    )
    dense = copy.deepcopy(model)

    print(f"Slicing {args.reduction:.0%} of its parameters away ...")
    start = time.perf_counter()
    config = SliceGPTConfig(
        parameter_reduction=args.reduction, dataset="python", nsamples=args.nsamples, seqlen=args.seqlen
    )
    model.compress(config, tokenizer=tokenizer)
    seconds = time.perf_counter() - start
    before, after = measure(dense, held_out), measure(model, held_out)
    speeds = benchmark({"dense": dense, "sliced": model}, Settings(repeats=args.repeats)).speeds
    for found, speed in zip((before, after), speeds, strict=True):
        found |= {"prompt, tokens/s": speed.prefill.tokens_per_s, "writing, tokens/s": speed.decode.tokens_per_s}

    print(f"\n{'':20}{'dense':>10}{'sliced':>10}{'change':>10}")
    for name, old in before.items():
        print(f"{name:20}{old:10.1f}{after[name]:10.1f}{after[name] / old - 1:+10.1%}")
    phases = ", ".join(f"{phase} {taken:.1f}" for phase, taken in model.config.slicegpt["seconds"].items())
    print(f"{'slicing, s':30}{seconds:10.1f}   ({phases})\n")

    output = Path(args.output)
    model.save_pretrained(output)
    save_tokenizer(tokenizer, output)
    print(f"Saved to {output}, as a {type(model).__name__}. Loaded again by transformers alone, it writes:\n")
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, str(output), PROMPT], check=True)


if __name__ == "__main__":
    main()
