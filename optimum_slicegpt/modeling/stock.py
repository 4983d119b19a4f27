"""The stock class of a sliced model: one that transformers has, and that needs no code of this package."""

import copy
from functools import reduce
from math import lcm

from transformers import CONFIG_MAPPING, PreTrainedConfig

from .family import Family, StockClass


LEFT_BEHIND = ("model_type", "architectures", "quantization_config", "auto_map", "transformers_version")
"""Keys of a configuration that do not describe a model of another class."""
SLICED_KEYS = ("widths", "original_hidden_size", "embedding_size", "shortcuts", "intermediate_sizes", "slicegpt")
"""Keys of a sliced configuration that no stock class has."""


def own_config(config):
    """Returns a copy of a dense model's configuration, of its family's own class, without quantization and code."""
    config_class = CONFIG_MAPPING[config.model_type]
    if type(config) is config_class:
        own = copy.deepcopy(config)
        for key in ("quantization_config", "auto_map"):
            own.__dict__.pop(key, None)
    else:
        own = config_class(**{key: value for key, value in config.to_dict().items() if key not in LEFT_BEHIND})
    own.name_or_path = config.name_or_path
    return own


def dense_hidden_size(config) -> int:
    """Returns the hidden size D of the dense model, from its own configuration or that of a sliced class."""
    return getattr(config, "original_hidden_size", None) or config.hidden_size


def stock_hidden_size(family: Family, config, width: int) -> int:
    """
    Returns the `hidden_size` of the stock class that holds a width.

    LayerNorm subtracts a mean, which takes a dimension of its own unless the stream keeps all of its dimensions.

    Args:
        family ([`family.Family`]), config (`PreTrainedConfig`): of the dense model.
        width (`int`): of the sliced stream.
    """
    return width + (family.layer_norm and width < dense_hidden_size(config))


def stock_class(family: Family, config, hidden_size: int) -> StockClass | None:
    """
    Finds the class that holds a hidden size, by the family's row. [`stock_config`] builds its configuration.

    Args:
        family ([`family.Family`]): of the model.
        config (`PreTrainedConfig`): of the dense model, or of its sliced class.
        hidden_size (`int`): of the stock model.

    Returns:
        [`family.StockClass`]: `None` if no class holds it.
    """
    if hidden_size == dense_hidden_size(config):
        return StockClass()
    for found in family.narrower:
        unit = lcm(found.multiple_of, config.num_attention_heads if found.by_heads else 1)
        if hidden_size % unit == 0 and all(_value(config, key) == value for key, value in found.requires):
            return found
    return None


def _value(config, key: str):
    """Returns the value of a key, or of a key inside a dictionary: `"rope_parameters.rope_type"`."""
    first, *inner = key.split(".")
    return reduce(dict.get, inner, getattr(config, first))


def stock_config(family: Family, config, hidden_size: int) -> PreTrainedConfig:
    """
    Builds the configuration of the stock class that holds a hidden size.

    Args:
        family ([`family.Family`]): of the model.
        config (`PreTrainedConfig`): of its sliced class.
        hidden_size (`int`): of the stock model; [`stock_class`] has one for it.
    """
    found, own = stock_class(family, config, hidden_size), config.model_type.removeprefix("sliced_")
    config_class = CONFIG_MAPPING[found.model_type or own]
    values = {key: value for key, value in config.to_dict().items() if key not in (*LEFT_BEHIND, *SLICED_KEYS)}
    values |= dict.fromkeys(family.size_keys, hidden_size) | dict(found.changes)
    if config_class.model_type != own:
        values = {key: value for key, value in values.items() if key in config_class.__dataclass_fields__}
    divides = isinstance(getattr(config_class, "head_dim", None), property)  # Falcon's divides by the heads.
    if not divides and "head_dim" not in config_class.__dataclass_fields__:
        divides = hidden_size == getattr(config, "num_attention_heads", 0) * (config.head_dim or 0)
    if divides:
        values.pop("head_dim", None)
    return config_class(**values)
