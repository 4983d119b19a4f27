"""Keys of `config.json` that readers such as transformers 4.57 and MLX-LM need, and transformers 5 does not write."""

import copy
from typing import Any

from transformers import PreTrainedConfig


ROPE_KEYS = {
    "rope_theta": {"gpt_neox": "rotary_emb_base"},
    "partial_rotary_factor": {"gpt_neox": "rotary_pct"},
}
"""Keys of `rope_parameters` that older readers seek beside it, and their names in families that have their own."""

_diff_dict = PreTrainedConfig.to_diff_dict


def to_diff_dict(self: PreTrainedConfig) -> dict[str, Any]:
    """
    Returns what `config.json` holds, for results of a stock class with the keys of older readers. This is the
    `to_diff_dict` of every `PreTrainedConfig`: whoever saves a model calls it, and nothing that it computes is stale.
    """
    keys = _diff_dict(self)
    if "slicegpt" in keys and not self.is_custom_code():
        add_older_keys(keys)
        if keys.get("rope_parameters") and _reads_older_rotations(self):
            add_older_rotations(keys)
    return keys


def _reads_older_rotations(config: PreTrainedConfig) -> bool:
    """Tells whether a class still reads `rope_scaling`. It would replace `rope_parameters` in one that never did."""
    if getattr(config, "is_heterogeneous", False):  # It cannot be asked, and is too new for older readers.
        return False
    return "rope_scaling" not in copy.deepcopy(config).convert_rope_params_to_dict(rope_scaling=None)


def add_older_keys(keys: dict[str, Any]) -> None:
    """Adds to the keys of a `config.json` `torch_dtype` for `dtype`, and `num_experts` of Qwen3-MoE."""
    if "dtype" in keys:
        keys["torch_dtype"] = keys["dtype"]
    if keys["model_type"] == "qwen3_moe":
        keys["num_experts"] = keys["num_local_experts"]


def add_older_rotations(keys: dict[str, Any]) -> None:
    """Adds `rope_theta`, `rope_local_base_freq`, `partial_rotary_factor` and `rope_scaling` for `rope_parameters`."""
    model_type, rope = keys["model_type"], keys["rope_parameters"]
    if "full_attention" in rope:  # Layers with a window have rotations of their own.
        keys["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    keys.update({names.get(model_type, key): rope[key] for key, names in ROPE_KEYS.items() if key in rope})
    keys["rope_scaling"] = None
    if rope["rope_type"] != "default":
        # transformers 5 reads this instead of `rope_parameters`, so that nothing may be missing.
        keys["rope_scaling"] = {key: value for key, value in rope.items() if key not in ROPE_KEYS}
    if model_type == "phi3" and keys["rope_scaling"]:  # transformers 4.57 refuses all but these three.
        factors = {key: rope[key] for key in ("short_factor", "long_factor")}
        keys["rope_scaling"] = {"type": rope["rope_type"]} | factors
