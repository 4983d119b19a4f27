"""Rows of dense families with RMSNorms. What a field means is in [`family.Family`]."""

from .family import Family, StockClass


RMS_NORM: dict[str, Family] = {
    "llama": Family(
        narrower=(
            StockClass(by_heads=True),  # LlamaConfig refuses other sizes. Mistral computes the same and accepts all.
            StockClass(
                "mistral",
                changes=(("sliding_window", None),),
                requires=(("attention_bias", False), ("mlp_bias", False)),
            ),
        ),
    ),
    "mistral": Family(),
    # vLLM, MLX-LM and llama.cpp divide the hidden size of a Qwen2 by its heads, whatever its head_dim says.
    "qwen2": Family(
        narrower=(
            StockClass(
                "llama", by_heads=True, changes=(("attention_bias", True),), requires=(("use_sliding_window", False),)
            ),
        ),
    ),
    "qwen3": Family(),
    "smollm3": Family(),
    "phi3": Family(
        attn_readers=("self_attn.qkv_proj",),
        attn_dropout="resid_attn_dropout",
        mlp_readers=("mlp.gate_up_proj",),
        mlp_dropout="resid_mlp_dropout",
        # Its configuration compares the factors of other kinds with hidden_size / heads.
        narrower=(StockClass(requires=(("rope_parameters.rope_type", "default"),), only="transformers, vLLM"),),
    ),
    "granite": Family(residual_multiplier="residual_multiplier", narrower=(StockClass(only="transformers, vLLM"),)),
    "gemma": Family(gain_offset=1.0),
}
