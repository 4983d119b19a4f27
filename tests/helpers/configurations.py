"""Configurations of dense models, without a model."""

from tiny import ALL
from transformers import AutoConfig, LlamaConfig


SMOL = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    tie_word_embeddings=True,
)
"""The shape of SmolLM2-135M."""

LLAMA_70B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
"""The shape of Llama-3-70B."""

BIASED = {"attention_bias": True}
"""With which a Llama of a width that its heads do not divide cannot be a Mistral."""


def tiny_config(name, tied=False, **overrides):
    """Builds the configuration of a tiny model."""
    sizes = ALL[name] | {"tie_word_embeddings": tied} | overrides
    return AutoConfig.for_model(name.split("-")[0], **sizes)
