"""`fit_memory`: the size at which weights and cache take no more than some memory."""

from dataclasses import replace

import torch
from transformers import DynamicCache

from ..configuration import SliceGPTConfig
from ..modeling.caches import cache_argument, held_bytes
from ..modeling.decoder import empty_model
from ..validation import file_size


def sized_for_memory(config: SliceGPTConfig, model_config) -> SliceGPTConfig:
    """
    Returns a configuration that says by `parameter_reduction` what it says by `fit_memory` and `context`.

    Args:
        config ([`SliceGPTConfig`]): any; one without `fit_memory` is returned as it is.
        model_config (`PreTrainedConfig`): of the dense model; its dtype is that of weights and cache.

    Raises:
        ValueError: the dense model fits, or not even its cache does.
    """
    if config.fit_memory is None:
        return config
    model, memory = empty_model(model_config), file_size(config.fit_memory)
    cache = 0 if config.context is None else cache_bytes(model_config, config.context)
    weights = model.num_parameters() * model.dtype.itemsize
    sizes = f"weights of {weights / 1e9:.2f} GB and a cache of {cache / 1e9:.2f} GB for context={config.context}"
    if weights + cache <= memory:
        raise ValueError(f"fit_memory={config.fit_memory!r}: the dense model fits, with {sizes}; give less memory.")
    if cache >= memory:
        raise ValueError(f"fit_memory={config.fit_memory!r} is too little for {sizes}; give a shorter context.")
    return replace(config, fit_memory=None, context=None, parameter_reduction=1 - (memory - cache) / weights)


@torch.no_grad()
def cache_bytes(model_config, context: int) -> int:
    """
    Computes the size of the cache of one sequence, which slicing leaves as it is: keys and values, and the states of
    other layers.

    Args:
        model_config (`PreTrainedConfig`): of the dense model.
        context (`int`): tokens.

    Examples:
        >>> from transformers import LlamaConfig
        >>> dense = LlamaConfig(num_hidden_layers=2, num_key_value_heads=4, head_dim=64, dtype="bfloat16")
        >>> cache_bytes(dense, context=1024) == 2 * 2 * 4 * 64 * 1024 * 2
        True
    """
    model = empty_model(model_config)
    # Other implementations look at values, which `meta` has none of.
    model.set_attn_implementation("eager")
    model.set_experts_implementation("batched_mm")
    ids = torch.zeros(1, context, dtype=torch.long, device="meta")
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
    return held_bytes(cache)
