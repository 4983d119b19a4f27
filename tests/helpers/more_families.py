"""Tiny configurations of further families, as in `tiny.TINY`."""

from shapes import COMMON, GPT, GRANITE, GROUPED, MLA, WHOLE


MORE = {
    # RMSNorm
    "vaultgemma": GROUPED | {"sliding_window": 8},
    "seed_oss": GROUPED,
    "ministral": GROUPED | {"sliding_window": 8},
    "ministral3": GROUPED,
    "ernie4_5": GROUPED,
    "hunyuan_v1_dense": GROUPED,
    "cwm": GROUPED | {"sliding_window": 8},
    "helium": GROUPED | {"num_attention_heads": 6},
    "diffllama": GROUPED,
    "internlm3": GROUPED | {"qkv_bias": True, "bias": True},
    "iquestcoder": GROUPED,
    "granite_swa": GROUPED | GRANITE | {"sliding_window": 8},
    "hyperclovax": GROUPED | {"use_post_norm": False, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "glm": GROUPED,
    "arcee": GROUPED,
    "apertus": GROUPED,
    "youtu": MLA | {"pad_token_id": None},  # Its code zeroes the row of padding whenever a model is loaded.
    "youtu-whole_queries": MLA | {"pad_token_id": None, "q_lora_rank": None},
    "minicpm3": MLA | {"dim_model_base": 12},
    "nanochat": GROUPED,
    # Experts
    "olmoe": WHOLE | {"num_key_value_heads": 1, "num_experts": 5, "num_experts_per_tok": 3},
    "minimax_m2": GROUPED | {"num_local_experts": 5, "num_experts_per_tok": 3, "rotary_dim": 8},
    "granitemoe": GROUPED | GRANITE | {"num_local_experts": 5, "num_experts_per_tok": 3},
    # LayerNorm
    "cohere2": WHOLE | {"num_key_value_heads": 1, "sliding_window": 8},
    "jais2": GROUPED,
    "persimmon": WHOLE,
    "gptj": GPT | {"n_head": 4, "rotary_dim": 4},
    "codegen": GPT | {"n_head": 4, "rotary_dim": 4},
    "gpt_bigcode": GPT | {"n_head": 3},
    "gpt_neo": COMMON
    | {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 3, "window_size": 8}
    | {"intermediate_size": 40},
    "biogpt": WHOLE,
}
"""Families whose code resembles that of another one."""

POST_NORM = {
    "gemma2": GROUPED | {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": GROUPED | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "olmo2": GROUPED | {"attention_bias": True},
    "olmo3": GROUPED | {"sliding_window": 8},
    "exaone4": GROUPED | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "glm4": GROUPED,
}
"""Families with norms behind their blocks, with which no rotation commutes."""
