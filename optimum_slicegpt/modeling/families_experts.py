"""Rows of families with mixtures of experts. What a field means is in [`family.Family`]."""

from .family import GATED, IN_EIGHTS, MIXED, MLA, QKV, SHARED, Family, StockClass, Transposed


STACKED = {
    "mlp_readers": ("mlp.gate", "mlp.experts.gate_up_proj"),
    "mlp_writer": "mlp.experts.down_proj",
    "moe": True,
}
EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        **STACKED,
        narrower=(StockClass(multiple_of=8, only="transformers, vLLM, llama.cpp"),),
    ),
    "qwen3_moe": Family(**MIXED, narrower=(StockClass(multiple_of=8),)),
    "olmoe": Family(**STACKED, narrower=()),
    "minimax_m2": Family(**STACKED, narrower=IN_EIGHTS),
    "granitemoe": Family(
        mlp=("block_sparse_moe",),
        mlp_readers=("block_sparse_moe.router", "block_sparse_moe.experts.gate_up_proj"),
        mlp_writer="block_sparse_moe.experts.down_proj",
        residual_multiplier="residual_multiplier",
        moe=True,
        narrower=IN_EIGHTS,
    ),
    "glm4_moe": Family(**MIXED, narrower=IN_EIGHTS),
    "dots1": Family(**MIXED, narrower=IN_EIGHTS),
    "exaone_moe": Family(**MIXED, narrower=IN_EIGHTS),
    "hy_v3": Family(**MIXED, narrower=IN_EIGHTS),
    "mellum": Family(**MIXED, narrower=IN_EIGHTS),
    "solar_open": Family(**MIXED, narrower=IN_EIGHTS),
    "mimo_v2_flash": Family(**MIXED, narrower=IN_EIGHTS),
    "ernie4_5_moe": Family(**MIXED, active_key="moe_k", narrower=IN_EIGHTS),
    "qwen2_moe": Family(**GATED, narrower=IN_EIGHTS),
    "deepseek_v2": Family(
        attn_readers=MLA,
        **MIXED,
        narrower=(StockClass(by_heads=True, multiple_of=8, only="transformers"),),
    ),
    "deepseek_v3": Family(attn_readers=MLA, **MIXED, narrower=IN_EIGHTS),
    "glm4_moe_lite": Family(attn_readers=MLA, **MIXED, narrower=IN_EIGHTS),
    "deepseek_v32": Family(
        attn_readers=(*MLA, "self_attn.indexer.wk", "self_attn.indexer.weights_proj"),
        **MIXED,
        narrower=IN_EIGHTS,
    ),
    "laguna": Family(attn_readers=(*QKV, "self_attn.g_proj"), **MIXED, narrower=IN_EIGHTS),
    "cohere2_moe": Family(mlp_norm=None, layer_norm=True, parallel=True, **MIXED, narrower=()),
    "hunyuan_v1_moe": Family(
        mlp_readers=(
            *("mlp.gate.wg", "mlp.experts.gate_up_proj", "mlp.shared_mlp.gate_proj", "mlp.shared_mlp.up_proj"),
        ),
        mlp_writer="mlp.experts.down_proj",
        more_mlp_writers=("mlp.shared_mlp.down_proj",),
        moe=True,
        active_key="moe_topk",
        narrower=IN_EIGHTS,
    ),
    "granitemoeshared": Family(
        mlp=("block_sparse_moe", "shared_mlp"),
        mlp_adds=True,
        mlp_readers=("block_sparse_moe.router", "block_sparse_moe.experts.gate_up_proj", "shared_mlp.input_linear"),
        mlp_writer="block_sparse_moe.experts.down_proj",
        more_mlp_writers=("shared_mlp.output_linear",),
        residual_multiplier="residual_multiplier",
        moe=True,
        narrower=IN_EIGHTS,
    ),
    "granitemoe_swa": Family(
        mlp=("block_sparse_moe", "shared_mlp"),
        mlp_adds=True,
        mlp_readers=("block_sparse_moe.router", "block_sparse_moe.experts.gate_up_proj", "shared_mlp.input_linear"),
        mlp_writer="block_sparse_moe.experts.down_proj",
        more_mlp_writers=("shared_mlp.output_linear",),
        residual_multiplier="residual_multiplier",
        moe=True,
        narrower=IN_EIGHTS,
    ),
    "gpt_oss": Family(
        mlp_readers=("mlp.router", Transposed("mlp.experts.gate_up_proj")),
        mlp_writer=Transposed("mlp.experts.down_proj"),
        more_mlp_writers=(Transposed("mlp.experts.down_proj_bias"),),
        moe=True,
        narrower=IN_EIGHTS,
    ),
    "llama4_text": Family(
        body="model",
        mlp=("feed_forward",),
        mlp_readers=(
            *("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.router"),
            Transposed("feed_forward.experts.gate_up_proj"),
            *("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
        ),
        mlp_writer="feed_forward.down_proj",
        more_mlp_writers=(Transposed("feed_forward.experts.down_proj"), "feed_forward.shared_expert.down_proj"),
        moe=True,
        narrower=IN_EIGHTS,
    ),
    "aria_text": Family(
        mlp_readers=("mlp.router", Transposed("mlp.experts.gate_up_proj"), *SHARED),
        mlp_writer=Transposed("mlp.experts.down_proj"),
        more_mlp_writers=("mlp.shared_experts.down_proj",),
        moe=True,
        active_key="moe_topk",
        narrower=(StockClass(by_heads=True, multiple_of=8, only="transformers"),),
    ),
    "flint": Family(**GATED, narrower=IN_EIGHTS),
}
