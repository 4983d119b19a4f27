"""
Writes the reference of a model for the scripts of clients: what transformers computes in float32 in this environment.

    python benchmarks/clients/reference.py --model FOLDER --reference FILE.npz --output RESULT.json

The texts are of Python's own documentation, of topics that the dataset `python-docs` does not calibrate on.
`--sequences` of them, 4 by default, measure perplexity.
"""

import numpy as np
import torch
from contract import arguments, measure, write
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from optimum_slicegpt import load_batches


PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Once upon a time, there was a")
WRITTEN = 32


def main():
    args = arguments(sequences=4)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # without a token that ends a text

    @torch.inference_mode()
    def logits(ids):
        return model(torch.tensor([ids])).logits[0].numpy()

    def generate(ids, tokens):
        ids = torch.tensor([ids])
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens)[0, ids.shape[1] :]

    batches = load_batches(
        "python-docs", tokenizer, split="test", nsamples=1 + int(args.sequences), seqlen=512, seed=None
    )
    text, *test = torch.cat([batch["input_ids"] for batch in batches]).tolist()
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    reference = {"text": text[:256], "logits": logits(text[:256]), "test": test}
    reference["greedy"] = [generate(prompt, WRITTEN).tolist() for prompt in prompts]
    for i, prompt in enumerate(prompts):
        reference |= {f"prompt_{i}": prompt, f"last_{i}": logits(prompt)[-1]}
    np.savez(args.reference, **reference)
    write(args.output, measure(args.reference, logits, generate), "transformers", "torch")


if __name__ == "__main__":
    main()
