"""What a model's forward calls its cache, and what a cache holds."""

import inspect

import torch
from transformers import Cache

from .family import CACHE_NAMES


def cache_argument(model) -> str:
    """
    Returns what the forward of a model calls its cache.

    Examples:
        >>> from transformers import LlamaForCausalLM
        >>> cache_argument(LlamaForCausalLM) in ("past_key_values", "cache")
        True
    """
    arguments = inspect.signature(model.forward).parameters
    return next(name for name in CACHE_NAMES if name in arguments)


def held_bytes(cache: Cache) -> int:
    """Adds up the sizes of what a cache holds, in bytes: keys and values, and the states of other layers."""
    held = [value for layer in cache.layers for value in vars(layer).values()]
    held += [each for value in held if isinstance(value, dict) for each in value.values()]
    return sum(each.nbytes for each in held if isinstance(each, torch.Tensor) and each.is_floating_point())
