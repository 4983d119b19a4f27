"""Sizes of tiny models, all of them distinct, so that a transposed matrix raises."""

VOCAB, HIDDEN, LAYERS = 97, 48, 2
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = COMMON | {"intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
WHOLE = COMMON | {"intermediate_size": 40, "num_attention_heads": 3}
"""For families whose heads must add up to the hidden size."""
MLA = COMMON | {
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
}
"""For attention with queries, keys and values of low rank."""
GPT = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": LAYERS, "n_inner": 40, "n_positions": 64}
GPT |= {"bos_token_id": 1, "eos_token_id": 2}
MIXED = GROUPED | {"moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 3}
DEEPSEEK = MLA | {
    "moe_intermediate_size": 20,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
DENSE_AND_SPARSE = {"mlp_layer_types": ["dense", "sparse"]}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 10, "mamba_n_groups": 1}
MULTIPLIED = {
    "mamba_d_ssm": 96,
    "time_step_limit": [0.01, 3.0],
    "attention_bias": True,
    "projectors_bias": True,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.5,
    "mlp_multipliers": [0.7, 1.6],
    "key_multiplier": 0.6,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.4,
    "ssm_out_multiplier": 0.4,
    "ssm_multipliers": [0.9, 1.1, 1.2, 0.8, 0.7],
}
"""For Falcon-H1: multipliers, all of them different, and biases beside writers of different ones."""
GRANITE = {"embedding_multiplier": 12, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 8}
