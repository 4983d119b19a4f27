"""
Shows what a dense model, and models that were made of it, answer to the same prompts.

    python benchmarks/prompts.py --dense FOLDER --model NAME=FOLDER ... [--name NAME] [--dtype DTYPE]

Prompts are those below, as a user's turn by the chat template of the dense model; answers are greedy, of at most 48
tokens. Writes `benchmarks/results/prompts.json`; answers of another model (`--name`) stay in that file.
"""

import argparse
import json
from pathlib import Path

import torch
from common import RESULTS, environment, is_dense, write
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


PROMPTS = {
    "facts": (
        "What is the capital of France?",
        "Who wrote Romeo and Juliet?",
        "Why is the sky blue? Answer in one sentence.",
        "Which planet of the solar system is the largest?",
    ),
    "arithmetic": (
        "What is 17 + 25?",
        "A book costs 12 dollars. How much do three of them cost?",
    ),
    "translation": (
        "Translate into French: The cat sleeps on the chair.",
        "Translate into English: Ich möchte ein Glas Wasser.",
    ),
    "code": (
        "Write a Python function that returns the n-th Fibonacci number.",
        "What does this print? print([x * x for x in range(4)])",
    ),
    "dialogue": (
        "I had a bad day at work. What could cheer me up?",
        "Hello! My name is Anna. Could you recommend a hobby for rainy days?",
    ),
}
NEW_TOKENS = 48


@torch.inference_mode()
def answer(model, tokenizer, prompts: list[str], new_tokens: int = NEW_TOKENS) -> list[str]:
    """Answers each prompt greedily, as a user's turn by the tokenizer's chat template."""
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        answers.append(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, type=Path, help="folder of the dense model")
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME=PATH", help="models that were made of it")
    parser.add_argument("--name", help="of the dense model in results (default: the folder's)")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help=f"at most (default: {NEW_TOKENS})")
    parser.add_argument("--dtype", default="bfloat16", help="(default: bfloat16)")
    args = parser.parse_args()

    model_name = args.name or args.dense.resolve().name
    path = RESULTS / "prompts.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in runs if run["model"] != model_name]
    tokenizer = AutoTokenizer.from_pretrained(args.dense)
    prompts = [{"kind": kind, "prompt": prompt} for kind, texts in PROMPTS.items() for prompt in texts]
    for name, folder in (("dense", args.dense), *(each.split("=", 1) for each in args.model)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=args.dtype).eval()
        answers = answer(model, tokenizer, [each["prompt"] for each in prompts], args.new_tokens)
        run = {"model": model_name, "name": name, "parameters": model.num_parameters(), "answers": answers}
        runs.append(run | ({} if is_dense(run) else {"commit": environment()["commit"]}))
        about = {"new_tokens": args.new_tokens, "dtype": args.dtype, "prompts": prompts}
        print(write("prompts", about | {"runs": runs}), name)


if __name__ == "__main__":
    main()
