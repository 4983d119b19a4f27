"""
Measures a sliced model beside the dense one: perplexity, and PIQA through lm-eval (`pip install lm-eval`).

    python examples/measure.py --dense HuggingFaceTB/SmolLM2-135M-Instruct --sliced sliced --piqa FOLDER

FOLDER holds PIQA's `valid.jsonl` and `valid-labels.lst`. Without it, only perplexity is measured, as by
`optimum-cli slicegpt eval --model sliced --baseline dense`.
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import evaluate_losses, load_batches


TASKS = Path(__file__).parent / "tasks"


def piqa(model, tokenizer, folder, limit):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"piqa": folder})
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    found = lm_eval.simple_evaluate(harness, tasks=["piqa_local"], task_manager=tasks, limit=limit)
    results = found["results"]["piqa_local"]
    return f"{results['acc_norm,none']:.3f} ± {results['acc_norm_stderr,none']:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="name or path of the dense model")
    parser.add_argument("--sliced", required=True, help="folder of the sliced model, with its tokenizer")
    parser.add_argument("--dataset", default="wikitext2", help="name or file to measure perplexity on")
    parser.add_argument("--nsamples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--piqa", help="folder of PIQA")
    parser.add_argument("--limit", type=int, help="number of questions (default: all)")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.sliced)
    text = load_batches(args.dataset, tokenizer, split="test", nsamples=args.nsamples, seqlen=args.seqlen, seed=None)
    losses = {}
    for name in (args.dense, args.sliced):
        model = AutoModelForCausalLM.from_pretrained(name)
        losses[name] = evaluate_losses(model, text, batch_size=4)
        print(f"{name}: perplexity {losses[name].perplexity().perplexity:.2f} on {text.source}")
        if args.piqa:
            print(f"{name}: PIQA {piqa(model, tokenizer, args.piqa, args.limit)}")
    difference = losses[args.sliced].difference(losses[args.dense])
    print(f"loss of the sliced over the dense one: {difference.nll:+.4f} ± {difference.stderr:.4f} nats per token")


if __name__ == "__main__":
    main()
