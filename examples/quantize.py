"""
Quantizes a sliced model to int8 weights with torchao (`pip install torchao`), and measures the perplexity of both.

    python examples/quantize.py --model sliced --output sliced-int8

What stands in the stream itself keeps its dtype: shortcuts, which carry activations that are thousands of times as
large as the average and would spread rounding errors (docs/ecosystem.md), and the projections between the stream and
an embedding that keeps its width. A stock model has neither, and only its head is kept. Loading the result needs
torchao.
"""

import argparse
from pathlib import Path

from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from optimum_slicegpt import evaluate_perplexity, load_batches


KEPT = [".*_shortcut", ".*projection", "lm_head"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a sliced checkpoint, with its tokenizer")
    parser.add_argument("--output", required=True, help="folder for the quantized checkpoint")
    parser.add_argument("--dataset", default="wikitext2", help="name or file to measure perplexity on")
    parser.add_argument("--nsamples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    text = load_batches(args.dataset, tokenizer, split="test", nsamples=args.nsamples, seqlen=args.seqlen, seed=None)
    int8 = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=KEPT)
    sliced = AutoModelForCausalLM.from_pretrained(args.model, dtype="bfloat16")
    quantized = AutoModelForCausalLM.from_pretrained(args.model, dtype="bfloat16", quantization_config=int8)
    quantized.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)

    for name, model in {"sliced": sliced, "int8": quantized}.items():
        print(f"{name}: perplexity {evaluate_perplexity(model, text).perplexity:.2f} on {text.source}")
    size = sum(path.stat().st_size for path in Path(args.output).glob("*.safetensors"))
    print(f"{size / 1e6:.1f} MB in {args.output}")


if __name__ == "__main__":
    main()
