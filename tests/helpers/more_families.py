"""Tiny configurations of further families, as in `tiny.TINY`."""

from shapes import (
    COMMON,
    DEEPSEEK,
    DELTA,
    DENSE_AND_SPARSE,
    GPT,
    GRANITE,
    GROUPED,
    HIDDEN,
    LAYERS,
    MAMBA,
    MIXED,
    MLA,
    MULTIPLIED,
    VOCAB,
    WHOLE,
)


TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
STATES = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
ROUTED = MIXED | {
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
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
    "qwen3_moe-dense_and_sparse": MIXED | {"mlp_only_layers": [0]},
    "qwen2_moe": MIXED | {"shared_expert_intermediate_size": 22, "mlp_only_layers": [0]},
    "deepseek_v2": DEEPSEEK | {"n_group": None, "topk_group": None, "topk_method": "greedy"},
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": DEEPSEEK | {"index_n_heads": 2, "index_head_dim": 10, "index_topk": 64},
    "glm4_moe_lite": DEEPSEEK | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "glm4_moe": ROUTED,
    "dots1": ROUTED,
    "solar_open": ROUTED | {"n_group": 1},
    "mimo_v2_flash": ROUTED | DENSE_AND_SPARSE | {"num_hidden_layers": 2, "v_head_dim": 14, "n_group": 1},
    "ernie4_5_moe": GROUPED
    | {"moe_intermediate_size": 20, "moe_num_experts": 6, "moe_k": 3, "moe_num_shared_experts": 1}
    | {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
    "exaone_moe": MIXED | DENSE_AND_SPARSE | {"num_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "hy_v3": MIXED | DENSE_AND_SPARSE | {"expert_hidden_dim": 20, "num_shared_experts": 1, "first_k_dense_replace": 1},
    "mellum": MIXED | DENSE_AND_SPARSE,
    "laguna": MIXED
    | DENSE_AND_SPARSE
    | {"shared_expert_intermediate_size": 22, "num_attention_heads_per_layer": [4, 4]},
    "hunyuan_v1_moe": GROUPED | {"num_experts": 5, "moe_topk": 3},
    "cohere2_moe": MIXED | {"prefix_dense_intermediate_size": 30, "first_k_dense_replace": 1, "num_shared_experts": 1},
    "granitemoeshared": GROUPED
    | GRANITE
    | {"num_local_experts": 5, "num_experts_per_tok": 3, "shared_intermediate_size": 22},
    "granitemoe_swa": GROUPED
    | GRANITE
    | {"num_local_experts": 5, "num_experts_per_tok": 3, "shared_intermediate_size": 22, "sliding_window": 8},
    "flint": MIXED | {"shared_expert_intermediate_size": 22, "mlp_only_layers": [0]},
    "gpt_oss": GROUPED | {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 8},
    "llama4_text": GROUPED
    | {"intermediate_size_mlp": 44, "num_local_experts": 5, "num_experts_per_tok": 1, "moe_layers": [1]},
    "dots3_note_text": DEEPSEEK
    | {
        "shared_experts_intermediate_size": 22,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    }
    | {"index_n_heads": 2, "index_head_dim": 10, "index_topk": 64, "head_dim": 16, "sliding_window": 8}
    | {"swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_q_lora_rank": 22, "swa_kv_lora_rank": 13}
    | {"swa_head_dim": 18, "swa_qk_nope_head_dim": 10, "swa_v_head_dim": 11},
    "minimax_m3_vl_text": GROUPED
    | DENSE_AND_SPARSE
    | {"dense_intermediate_size": 40, "intermediate_size": 20, "shared_intermediate_size": 22, "rotary_dim": 8}
    | {"num_local_experts": 5, "num_experts_per_tok": 3, "layer_types": ["full_attention", "minimax_m3_sparse"]}
    | {"index_n_heads": 2, "index_head_dim": 10, "index_block_size": 4},
    "aria_text": GROUPED | {"moe_num_experts": 5, "moe_topk": 2, "moe_num_shared_experts": 2, "intermediate_size": 20},
    # State spaces, convolutions, linear attention
    "qwen3_5_text": GROUPED | DELTA,
    "qwen3_5_moe_text": MIXED | DELTA | {"shared_expert_intermediate_size": 22},
    "qwen3_next": MIXED | DELTA | {"shared_expert_intermediate_size": 22},
    "kimi_linear": DEEPSEEK
    | DELTA
    | DENSE_AND_SPARSE
    | {"num_hidden_layers": 2, "linear_head_dim": 10, "linear_num_heads": 2},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": MIXED | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "bailing_hybrid": DEEPSEEK
    | DELTA
    | DENSE_AND_SPARSE
    | {"num_hidden_layers": 2, "num_experts": 6, "linear_head_dim": 10, "linear_num_heads": 2, "head_dim": 6},
    "granitemoehybrid": GROUPED
    | GRANITE
    | MAMBA
    | {"num_local_experts": 5, "num_experts_per_tok": 3, "shared_intermediate_size": 22}
    | {"layers_block_type": ["mamba", "attention"], "layer_types": ["mamba", "attention"]},
    "bamba": GROUPED | MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": GROUPED | MAMBA | MULTIPLIED,
    "recurrent_gemma": WHOLE
    | {"intermediate_size": 80, "num_key_value_heads": 1, "attention_window_size": 8}
    | {"block_types": ["recurrent", "attention"], "attention_bias": True},
    "jamba": GROUPED
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 10, "mamba_dt_rank": 5}
    | {"use_mamba_kernels": False},
    "nemotron_h": GROUPED
    | {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mlp", "attention", "moe"], "mamba_num_heads": 4}
    | {"mamba_head_dim": 24, "ssm_state_size": 10, "n_groups": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 20, "moe_shared_expert_intermediate_size": 22, "n_group": 1, "topk_group": 1},
    "mamba": STATES | {"state_size": 10},
    "falcon_mamba": STATES | {"state_size": 10},
    "mamba2": STATES | {"num_heads": 4, "head_dim": 24, "state_size": 10, "n_groups": 1, "chunk_size": 8},
    # LayerNorm
    "bloom": {"vocab_size": VOCAB, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 3} | TOKENS,
    "mpt": {"vocab_size": VOCAB, "d_model": HIDDEN, "n_layers": LAYERS, "n_heads": 3, "max_seq_len": 64} | TOKENS,
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
    "cohere_compass_text": WHOLE
    | {"num_key_value_heads": 1, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    | {"rope_parameters": {"full_attention": None, "sliding_attention": ROPE | {"mrope_section": [2, 3, 3]}}},
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

MROPE = {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}}
HEADLESS = {
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text"), WHOLE | {"num_key_value_heads": 1} | MROPE),
    "qwen3_vl_text": GROUPED | MROPE | {"num_hidden_layers": 3},
    "qwen3_vl_moe_text": MIXED | MROPE,
}
"""Text models of models of images and text, which have no class with a head."""
