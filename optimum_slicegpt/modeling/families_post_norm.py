"""Rows of families with norms behind their blocks. What a field means is in [`family.Family`]."""

from .family import Family, StockClass


SANDWICHED = Family(
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    gain_offset=1.0,
    begin_token=True,
    narrower=(StockClass(by_heads=True),),
)
"""Norms in front of the blocks and behind them."""

BEHIND_ALONE = Family(
    attn_norm=None,
    attn_post_norm="post_attention_layernorm",
    mlp_norm=None,
    mlp_post_norm="post_feedforward_layernorm",
    narrower=(StockClass(only="transformers"),),
)
"""Norms behind the blocks, which read the stream itself."""

POST_NORM: dict[str, Family] = {
    "gemma2": SANDWICHED,
    "gemma3_text": SANDWICHED,
    "olmo2": BEHIND_ALONE,
    "olmo3": BEHIND_ALONE,
    "exaone4": BEHIND_ALONE,
    "glm4": Family(
        attn_post_norm="post_self_attn_layernorm",
        mlp_readers=("mlp.gate_up_proj",),
        mlp_post_norm="post_mlp_layernorm",
    ),
}
