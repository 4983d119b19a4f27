"""Tiny random models of every family, built so that mistakes show: sizes differ, nothing is zero, one or square."""

import os
from itertools import cycle, product

import torch
from more_families import HEADLESS, MORE, POST_NORM
from shapes import COMMON, GPT, GRANITE, GROUPED, HIDDEN, VOCAB, WHOLE
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.modeling.families import FAMILIES, family_of
from optimum_slicegpt.modeling.weights import persistent_buffers


TINY = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 8},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": GROUPED,
    "smollm3": GROUPED | {"no_rope_layers": [1, 0]},
    "phi3": GROUPED,
    "phi3-longrope": COMMON
    | {"intermediate_size": 40, "num_attention_heads": 4, "original_max_position_embeddings": 32}
    | {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.1] * 6, "long_factor": [2.0] * 6}},
    "granite": GROUPED | GRANITE,
    "gemma": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": GROUPED | {"moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 3},
    "olmo": GROUPED | {"clip_qkv": 8.0},
    "cohere": GROUPED | {"use_qk_norm": True, "logit_scale": 0.5},
    "starcoder2": GROUPED,
    "nemotron": GROUPED | {"partial_rotary_factor": 0.5},
    "phi": WHOLE | {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "gpt_neox": WHOLE | {"use_parallel_residual": True},
    "gpt_neox-sequential": WHOLE | {"use_parallel_residual": False},
    "stablelm": WHOLE | {"num_key_value_heads": 1, "partial_rotary_factor": 0.5, "qk_layernorm": True},
    "stablelm-parallel": WHOLE | {"num_key_value_heads": 3, "use_parallel_residual": True, "use_qkv_bias": True},
    "opt": COMMON | {"ffn_dim": 40, "num_attention_heads": 3, "word_embed_proj_dim": HIDDEN},
    "gpt2": GPT | {"n_head": 3},
    "falcon": COMMON | {"ffn_hidden_size": 40, "num_attention_heads": 3},
    "falcon-two_norms": COMMON
    | {
        "ffn_hidden_size": 40,
        "num_attention_heads": 6,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "bias": True,
    },
}
"""
Test name -> arguments of the family's configuration. A name is a model_type, and after a dash perhaps a variant. Tests
of every kind run on these; on `MORE`, `tests/modeling/test_every_family.py` alone does unless `make test-all` says
otherwise, on `POST_NORM` `tests/slicing/test_post_norms.py`, as no rotation commutes with them, and on `HEADLESS`
`tests/modeling/test_towers.py`, inside models of images and text.
"""
TEST_ALL = bool(os.environ.get("SLICEGPT_TEST_ALL"))
if TEST_ALL:
    TINY = TINY | MORE
ALL = TINY | MORE | POST_NORM | HEADLESS
WITH_NEURONS = [name for name in TINY if not FAMILIES[name.split("-")[0]].keeps_neurons]
"""Those of `TINY` whose MLPs can lose neurons."""
ENDS = [
    (name, tied)
    for name in TINY
    for tied in (True, False)
    if not tied or "tie_word_embeddings" not in {key for key, *_ in FAMILIES[name.split("-")[0]].requires}
]
"""Each of `TINY` with its head tied to the table, where that can be sliced, and with a head of its own."""


def pairs(names, methods) -> list[tuple]:
    """Returns each name with one method, in turns; by `make test-all` each with every method."""
    return list(product(names, methods)) if TEST_ALL else list(zip(names, cycle(methods), strict=False))


def paper(**kwargs):
    """Returns the configuration of the paper's method: axes per block, nothing fitted; widths are multiples of 8."""
    return SliceGPTConfig(**{"rotation": "per_block", "refit": False, "round_to": 8} | kwargs)


def build(name: str, dtype=torch.float64, **overrides):
    """Builds a random model in evaluation mode whose norms, biases and embedding means are all far from trivial."""
    config = AutoConfig.for_model(name.split("-")[0], **ALL[name] | overrides)
    torch.manual_seed(0)
    # The grouped matrix product, by default the experts' own, knows no float64.
    experts = "eager" if dtype == torch.float64 else None
    model = AutoModelForCausalLM.from_config(config, experts_implementation=experts)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1 or "_norm" in key:  # Cohere's per-head norms hold a matrix of gains
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 4
        for key, buffer in persistent_buffers(model).items():
            if key.endswith("bias"):  # of a router
                buffer += 0.3 * torch.randn_like(buffer)
        table = model.get_input_embeddings().weight
        table += 0.2
    return model.to(dtype).eval()


def differing_widths(config):
    """Returns a width for every site, from 44 to 28, all of them different where the family allows that."""
    family = family_of(config)
    last = family.num_sites(config) - 1
    widths = [44 - round(16 * site / last) for site in range(last + 1)]
    for first, second, _ in reversed(family.equal_sites(config, tied=False)):
        widths[first] = widths[second]
    return widths


def tokens(batch=2, length=24, seed=1):
    """Draws token ids `(batch, length)` without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def calibration(batches=3, **kwargs):
    """Draws batches of tokens, enough of them for every axis to be determined."""
    return [{"input_ids": tokens(seed=100 + index, **kwargs)} for index in range(batches)]


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def aligned(model):
    """Moves weights from where safetensors map them: matrix products on CPUs round as their operands are aligned."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model
