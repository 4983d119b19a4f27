"""transformers, of the version that is installed, in float32."""

import torch
from contract import arguments, measure, write
from transformers import AutoModelForCausalLM, GenerationConfig


def main():
    args = arguments()
    model, info = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # without a token that ends a text

    @torch.inference_mode()
    def logits(ids):
        return model(torch.tensor([ids])).logits[0].numpy()

    def generate(ids, tokens):
        ids = torch.tensor([ids])
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens)[0, ids.shape[1] :]

    found = {"class": type(model).__name__} | measure(args.reference, logits, generate)
    write(args.output, found, "transformers", "torch")


if __name__ == "__main__":
    main()
