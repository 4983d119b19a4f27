"""Rows of families with mixtures of experts. What a field means is in [`family.Family`]."""

from .family import Family, StockClass


EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        mlp_readers=("mlp.gate", "mlp.experts.gate_up_proj"),
        mlp_writer="mlp.experts.down_proj",
        moe=True,
        narrower=(StockClass(multiple_of=8, only="transformers, vLLM, llama.cpp"),),  # for the grouped product
    ),
    "qwen3_moe": Family(
        mlp_readers=("mlp.gate", "mlp.experts.gate_up_proj"),
        mlp_writer="mlp.experts.down_proj",
        moe=True,
        narrower=(StockClass(multiple_of=8),),
        requires=(
            ("mlp_only_layers", [], "layers without experts have other readers and writers"),
            ("decoder_sparse_step", 1, "layers without experts have other readers and writers"),
        ),
    ),
}
