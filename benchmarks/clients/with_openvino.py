"""OpenVINO through optimum-intel, converted without compression and computed in float32."""

import torch
from contract import arguments, measure, write
from optimum.intel import OVModelForCausalLM
from transformers import GenerationConfig


def main():
    args = arguments()
    ov_config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    model = OVModelForCausalLM.from_pretrained(
        args.model, export=True, load_in_8bit=False, dtype=torch.float32, ov_config=ov_config
    )
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # without a token that ends a text

    def logits(ids):
        ids = torch.tensor([ids])
        return model(ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()

    def generate(ids, tokens):
        ids = torch.tensor([ids])
        return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens)[0, ids.shape[1] :]

    write(args.output, measure(args.reference, logits, generate), "openvino", "optimum-intel", "transformers")


if __name__ == "__main__":
    main()
