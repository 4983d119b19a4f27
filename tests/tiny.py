"""Tiny random models, one per family, built so that mistakes show: all sizes differ, nothing is zero, one or square."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM


VOCAB, HIDDEN, LAYERS = 97, 48, 2
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = COMMON | {"intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}

TINY = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 8},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": GROUPED,
    "phi3": GROUPED,
    "opt": COMMON | {"ffn_dim": 40, "num_attention_heads": 3, "word_embed_proj_dim": HIDDEN},
    "phi": COMMON
    | {"intermediate_size": 40, "num_attention_heads": 3, "partial_rotary_factor": 0.5, "qk_layernorm": True},
}
"""Test name -> arguments of the family's configuration. A name is a model_type, perhaps with a variant after a dash."""


def build(name: str, dtype=torch.float64, **overrides):
    """A random model in evaluation mode whose norms, biases and embedding means are all far from trivial."""
    config = AutoConfig.for_model(name.split("-")[0], **TINY[name] | overrides)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 4
        table = model.get_input_embeddings().weight
        table += 0.2
    return model.to(dtype).eval()


def tokens(batch=2, length=24, seed=1):
    """Token ids `(batch, length)` without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def calibration(batches=3, **kwargs):
    """Tokenised batches, enough of them for every axis to be determined."""
    return [{"input_ids": tokens(seed=100 + index, **kwargs)} for index in range(batches)]


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()
