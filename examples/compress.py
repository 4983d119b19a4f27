"""
Slices a model and saves it, with its tokenizer.

    python examples/compress.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output sliced --reduction 0.25

All other settings are defaults of `SliceGPTConfig`. `optimum-cli slicegpt compress` does the same on the command line.
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import SliceGPTConfig, save_tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or path of the dense model")
    parser.add_argument("--output", required=True, help="folder for the sliced model")
    parser.add_argument("--reduction", type=float, default=0.25, help="share of the parameters to delete")
    parser.add_argument("--dataset", default="auto", help="name or file to calibrate on")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    before = model.num_parameters()
    config = SliceGPTConfig(
        parameter_reduction=args.reduction, dataset=args.dataset, nsamples=args.nsamples, seqlen=args.seqlen
    )
    model.compress(config, tokenizer=tokenizer)
    model.save_pretrained(args.output)
    save_tokenizer(tokenizer, args.output)

    after = model.num_parameters()
    print(f"{before / 1e6:.2f} M parameters became {after / 1e6:.2f} M ({after / before - 1:+.1%})")
    print(f"seconds: {sum(model.config.slicegpt['seconds'].values()):.1f}, saved to {args.output}")


if __name__ == "__main__":
    main()
