"""
Fine-tunes a sliced model, alone or with the dense model as the teacher, and saves it.

    python examples/recover.py --model sliced --output recovered --teacher HuggingFaceTB/SmolLM2-135M-Instruct
    accelerate launch --num_processes 2 examples/recover.py --model sliced --output recovered

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
    parser.add_argument("--dataset", default="wikitext2", help="name or file to train on")
    parser.add_argument("--teacher", help="dense model to learn from, too")
    parser.add_argument("--nsamples", type=int, default=256)
    parser.add_argument("--seqlen", type=int, default=1024)
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
        record = model.config.slicegpt["recovery"]
        print(f"held-out perplexity before: {record['perplexity_before']:.2f}")
        print(f"held-out perplexity after: {record['perplexity_after']:.2f}")


if __name__ == "__main__":
    main()
