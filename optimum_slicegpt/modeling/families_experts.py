"""Rows of families with mixtures of experts. What a field means is in [`family.Family`]."""

from .family import Family, StockClass


STACKED = {
    "mlp_readers": ("mlp.gate", "mlp.experts.gate_up_proj"),
    "mlp_writer": "mlp.experts.down_proj",
    "moe": True,
}
IN_TRANSFORMERS = (StockClass(multiple_of=8, only="transformers"),)  # for the grouped product
EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        **STACKED,
        narrower=(StockClass(multiple_of=8, only="transformers, vLLM, llama.cpp"),),
    ),
    "qwen3_moe": Family(
        **STACKED,
        narrower=(StockClass(multiple_of=8),),
        requires=(
            ("mlp_only_layers", [], "layers without experts have other readers and writers"),
            ("decoder_sparse_step", 1, "layers without experts have other readers and writers"),
        ),
    ),
    "olmoe": Family(**STACKED, narrower=()),
    "minimax_m2": Family(**STACKED, narrower=IN_TRANSFORMERS),
    "granitemoe": Family(
        mlp=("block_sparse_moe",),
        mlp_readers=("block_sparse_moe.router", "block_sparse_moe.experts.gate_up_proj"),
        mlp_writer="block_sparse_moe.experts.down_proj",
        residual_multiplier="residual_multiplier",
        moe=True,
        narrower=IN_TRANSFORMERS,
    ),
}
