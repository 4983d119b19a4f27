"""
Publishes a sliced checkpoint on the Hugging Face Hub: weights, code, tokenizer and a model card, in one commit.

    hf auth login
    python examples/push_to_hub.py --model sliced --repo me/smollm2-sliced --private
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

import optimum_slicegpt  # noqa: F401  registers the sliced classes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a sliced checkpoint, with its tokenizer")
    parser.add_argument("--repo", required=True, help="USER/NAME on the Hub; created if it is not there")
    parser.add_argument("--private", action="store_true", help="create it as a private repository")
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    commit = model.push_to_hub(args.repo, tokenizer=tokenizer, private=args.private)
    print(f"published as {commit.commit_url}")


if __name__ == "__main__":
    main()
