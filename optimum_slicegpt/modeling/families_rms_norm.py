"""Rows of dense families with RMSNorms. What a field means is in [`family.Family`]."""

from .family import IN_TRANSFORMERS, Family, StockClass


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
    "qwen2_vl_text": Family(narrower=()),
    "qwen2_5_vl_text": Family(narrower=()),
    "qwen3": Family(),
    "qwen3_vl_text": Family(narrower=()),
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
    "gemma": Family(gain_offset=1.0, begin_token=True),
    "vaultgemma": Family(
        mlp_norm="pre_feedforward_layernorm",
        gain_offset=1.0,
        begin_token=True,
        narrower=(StockClass(by_heads=True, only="transformers"),),
    ),
    "seed_oss": Family(narrower=IN_TRANSFORMERS),
    "ministral": Family(narrower=IN_TRANSFORMERS),
    "ministral3": Family(narrower=IN_TRANSFORMERS),
    "ernie4_5": Family(narrower=IN_TRANSFORMERS),
    "hunyuan_v1_dense": Family(narrower=IN_TRANSFORMERS),
    "cwm": Family(narrower=(StockClass(by_heads=True, only="transformers"),)),
    "helium": Family(narrower=()),
    "diffllama": Family(narrower=IN_TRANSFORMERS),
    "internlm3": Family(narrower=(StockClass(by_heads=True, only="transformers"),)),
    "iquestcoder": Family(narrower=(StockClass(by_heads=True, only="transformers"),)),
    "granite_swa": Family(residual_multiplier="residual_multiplier", narrower=IN_TRANSFORMERS),
    "hyperclovax": Family(
        residual_multiplier="residual_multiplier",
        narrower=(StockClass(by_heads=True, only="transformers"),),
        requires=(
            ("use_post_norm", False, "a norm after the block acts in the original basis of the residual stream"),
        ),
    ),
    "glm": Family(mlp_readers=("mlp.gate_up_proj",), narrower=IN_TRANSFORMERS),
    "arcee": Family(mlp_readers=("mlp.up_proj",), narrower=(StockClass(by_heads=True, only="transformers"),)),
    "apertus": Family(
        attn_norm="attention_layernorm",
        mlp_norm="feedforward_layernorm",
        mlp_readers=("mlp.up_proj",),
        narrower=IN_TRANSFORMERS,
    ),
    "youtu": Family(
        attn_readers=("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
        narrower=IN_TRANSFORMERS,
        variants=(("q_lora_rank", None, {"attn_readers": ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa")}),),
    ),
    "minicpm3": Family(
        attn_readers=("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
        residual_multiplier="residual_scale",
        head_divides=True,
        narrower=(StockClass(by_heads=True, only="transformers"),),
    ),
    "nanochat": Family(
        mlp_readers=("mlp.fc1",),
        mlp_writer="mlp.fc2",
        ends_meet="the final norm comes before the first layer, too",
        narrower=IN_TRANSFORMERS,
        requires=(
            ("tie_word_embeddings", False, "its final norm, which comes before the first layer, too, has no gain"),
        ),
    ),
}
