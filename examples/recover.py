"""
Has a sliced model learn from the dense model, and saves it. Without a teacher it learns from the data alone, and
becomes a specialist for that kind of text.

    python examples/recover.py --model sliced --output recovered --teacher HuggingFaceTB/SmolLM2-135M-Instruct
    accelerate launch --num_processes 2 examples/recover.py --model sliced --output specialist --dataset wikitext2

All processes train, and the first one saves. All other settings are defaults of `RecoveryConfig`.
"""

import argparse

from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import RecoveryConfig, recover


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a sliced checkpoint")
    parser.add_argument("--output", required=True, help="folder for the recovered checkpoint")
    parser.add_argument("--dataset", default="auto", help="name or file to train on")
    parser.add_argument("--teacher", help="dense model to learn from, which also writes half of the text")
    parser.add_argument("--nsamples", type=int, default=256)
    parser.add_argument("--seqlen", type=int, default=512)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
    config = RecoveryConfig(
        dataset=args.dataset, nsamples=args.nsamples, seqlen=args.seqlen, distill=args.teacher is not None
    )
    recover(model, tokenizer, config, teacher=args.teacher)

    if PartialState().is_main_process:
        model.save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)
        for when, losses in model.config.slicegpt["recovery"]["held_out_losses"].items():
            print(f"mean held-out loss {when}: {sum(losses.values()) / len(losses):.4f}")


if __name__ == "__main__":
    main()
