"""Rows of families with state spaces, convolutions or linear attention. For fields see [`family.Family`]."""

from .family import GATED, IN_EIGHTS, IN_TRANSFORMERS, MIXED, MLA, QKV, Family


DELTA = {
    "attn": ("self_attn", "linear_attn"),
    "attn_readers": (
        *QKV,
        *("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba", "linear_attn.in_proj_qkv"),
        *("linear_attn.in_proj_z", "linear_attn.in_proj_b", "linear_attn.in_proj_a"),
    ),
    "more_attn_writers": ("linear_attn.out_proj",),
    "gain_offset": 1.0,
}
"""Gated delta nets in some layers, attention in the others."""
MAMBA = {
    "attn": ("self_attn", "mamba"),
    "attn_readers": (*QKV, "mamba.in_proj"),
    "more_attn_writers": ("mamba.out_proj",),
}
"""State spaces in some layers, attention in the others."""
CONVOLVED = {
    "final_norm": "embedding_norm",
    "attn": ("self_attn", "conv"),
    "attn_norm": "operator_norm",
    "attn_readers": (*QKV, "self_attn.g_proj", "conv.in_proj"),
    "attn_writer": "self_attn.out_proj",
    "more_attn_writers": ("conv.out_proj",),
    "mlp": ("feed_forward",),
    "mlp_norm": "ffn_norm",
    "mlp_writer": "feed_forward.w2",
}
"""Short convolutions in some layers, attention in the others."""
MIXERS = {
    "embeddings": ("embeddings",),
    "final_norm": "norm_f",
    "single": True,
    "attn": ("mixer",),
    "attn_norm": "norm",
}

UNTIED = (("tie_word_embeddings", False, "its class ties nothing, whatever the configuration says"),)
HYBRID: dict[str, Family] = {
    "qwen3_5_text": Family(**DELTA, narrower=IN_TRANSFORMERS),
    "qwen3_5_moe_text": Family(**DELTA, **GATED, narrower=IN_EIGHTS),
    "qwen3_next": Family(**DELTA, **GATED, narrower=IN_EIGHTS),
    "kimi_linear": Family(
        attn_readers=(*QKV, *MLA[1:], "self_attn.forget_gate.f_a_proj", "self_attn.b_proj", "self_attn.g_a_proj"),
        **MIXED,
        narrower=IN_EIGHTS,
        requires=UNTIED,
    ),
    "lfm2": Family(**CONVOLVED, mlp_readers=("feed_forward.w1", "feed_forward.w3"), narrower=()),
    "lfm2_moe": Family(
        **CONVOLVED,
        mlp_readers=(
            *("feed_forward.w1", "feed_forward.w3", "feed_forward.gate", "feed_forward.experts.gate_up_proj"),
        ),
        more_mlp_writers=("feed_forward.experts.down_proj",),
        moe=True,
        narrower=(),
    ),
    "bailing_hybrid": Family(
        attn_readers=(
            *(*QKV, "self_attn.kv_a_proj_with_mqa"),
            *("self_attn.forget_gate.f_proj", "self_attn.b_proj", "self_attn.g_proj"),
        ),
        **MIXED,
        narrower=IN_EIGHTS,
        requires=UNTIED,
    ),
    "granitemoehybrid": Family(
        **MAMBA,
        mlp=("block_sparse_moe", "shared_mlp"),
        mlp_adds=True,
        mlp_readers=("block_sparse_moe.router", "block_sparse_moe.experts.gate_up_proj", "shared_mlp.input_linear"),
        mlp_writer="block_sparse_moe.experts.down_proj",
        more_mlp_writers=("shared_mlp.output_linear",),
        residual_multiplier="residual_multiplier",
        moe=True,
        narrower=(),
    ),
    "bamba": Family(
        **MAMBA,
        final_norm="final_layernorm",
        mlp=("feed_forward",),
        mlp_norm="pre_ff_layernorm",
        mlp_readers=("feed_forward.gate_proj", "feed_forward.up_proj"),
        mlp_writer="feed_forward.down_proj",
        returns_tuple=True,
        narrower=(),
    ),
    "falcon_h1": Family(
        final_norm="final_layernorm",
        attn=("mamba", "self_attn"),
        attn_readers=(*QKV, "mamba.in_proj"),
        more_attn_writers=("mamba.out_proj",),
        mlp=("feed_forward",),
        mlp_norm="pre_ff_layernorm",
        mlp_readers=("feed_forward.gate_proj", "feed_forward.up_proj"),
        mlp_writer="feed_forward.down_proj",
        input_multipliers=(("self_attn", "attention_in_multiplier"),),
        output_multipliers=(
            ("self_attn.o_proj", "attn_out_multiplier"),
            ("mamba.out_proj", "ssm_out_multiplier"),
            ("feed_forward.down_proj", "feed_forward.down_multiplier"),
        ),
        returns_tuple=True,
        narrower=IN_TRANSFORMERS,
        variants=(("mamba_d_ssm", None, {"narrower": ()}),),
    ),
    "recurrent_gemma": Family(
        final_norm="final_norm",
        attn=("temporal_block",),
        attn_norm="temporal_pre_norm",
        attn_readers=(
            *("temporal_block.q_proj", "temporal_block.k_proj", "temporal_block.v_proj"),
            *("temporal_block.linear_x", "temporal_block.linear_y"),
        ),
        attn_writer="temporal_block.o_proj",
        more_attn_writers=("temporal_block.linear_out",),
        mlp=("mlp_block",),
        mlp_norm="channel_pre_norm",
        mlp_readers=("mlp_block.gate_proj", "mlp_block.up_proj"),
        mlp_writer="mlp_block.down_proj",
        gain_offset=1.0,
        neuron_units=2,
        narrower=(),
    ),
    "jamba": Family(
        **MAMBA,
        final_norm="final_layernorm",
        mlp=("feed_forward",),
        mlp_norm="pre_ff_layernorm",
        mlp_readers=(
            *("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.router"),
            "feed_forward.experts.gate_up_proj",
        ),
        mlp_writer="feed_forward.down_proj",
        more_mlp_writers=("feed_forward.experts.down_proj",),
        moe=True,
        narrower=(),
    ),
    "nemotron_h": Family(
        **MIXERS,
        attn_readers=(
            *("mixer.in_proj", "mixer.up_proj", "mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.gate"),
            *("mixer.experts.up_proj", "mixer.shared_experts.up_proj"),
        ),
        attn_writer="mixer.out_proj",
        more_attn_writers=(
            *("mixer.down_proj", "mixer.o_proj", "mixer.experts.down_proj", "mixer.shared_experts.down_proj"),
        ),
        moe=True,
        narrower=(),
        requires=UNTIED,
    ),
    "mamba": Family(**MIXERS, attn_readers=("mixer.in_proj",), attn_writer="mixer.out_proj", narrower=()),
    "mamba2": Family(**MIXERS, attn_readers=("mixer.in_proj",), attn_writer="mixer.out_proj", narrower=()),
    "falcon_mamba": Family(
        **MIXERS,
        attn_readers=("mixer.in_proj",),
        attn_writer="mixer.out_proj",
        narrower=(),
    ),
}
