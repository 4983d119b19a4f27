"""
Who reads and who writes the residual stream, family by family.

A family is a `model_type` of transformers. Its row holds names, never code: the one forward of a sliced decoder layer
([`modeling_sliced.SlicedLayerMixin`]), the fusion of norms, the rotation and the parameter count all read this table
and know no other names.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """
    A part of a decoder layer between two sites: it reads the stream at one, and adds to it before the next.

    Names are relative to the decoder layer.
    """

    kind: str
    """`"attn"`, `"mlp"`, or `"parallel"` where one residual connection spans both."""
    reads: tuple[tuple[str, tuple[str, ...]], ...]
    """Pairs of a norm and the linear layers that read its output."""
    writers: tuple[str, ...]
    """Linear layers whose outputs are added to the stream."""
    shortcut: str
    """The linear layer on the residual connection of a sliced layer."""


@dataclass(frozen=True)
class Family:
    """
    Names of the modules of one model family.

    `body` is relative to the base model (`model.base_model`), `layers`, `embeddings` and `final_norm` to the body,
    `head` to the causal language model, everything else to a decoder layer.
    """

    body: str = ""
    layers: str = "layers"
    embeddings: tuple[str, ...] = ("embed_tokens",)
    """Tables whose sum starts the stream: tokens first, then learned positions."""
    final_norm: str = "norm"
    head: str = "lm_head"

    attn: str = "self_attn"
    attn_norm: str = "input_layernorm"
    attn_readers: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attn_writer: str = "self_attn.o_proj"
    attn_dropout: str | None = None
    """A module, or a number on the layer, applied to the block's output while training."""

    mlp: tuple[str, ...] = ("mlp",)
    """Modules applied one after another."""
    mlp_norm: str | None = "post_attention_layernorm"
    """`None` where attention and MLP read the same norm."""
    mlp_readers: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_writer: str = "mlp.down_proj"
    mlp_dropout: str | None = None

    layer_norm: bool = False
    """Whether norms subtract the mean. They become RMSNorms, once the writers are centred."""
    parallel: bool | str = False
    """Whether attention and MLP share one residual connection, or the config key that says so."""
    size_keys: tuple[str, ...] = ("hidden_size",)
    """Config keys that hold the width of the stream."""
    requires: tuple[tuple[str, Any, str], ...] = ()
    """Config keys that must hold a value, and why: `(key, value, reason)`."""

    def is_parallel(self, config) -> bool:
        return getattr(config, self.parallel) if isinstance(self.parallel, str) else self.parallel

    def blocks(self, config) -> tuple[Block, ...]:
        """Blocks of one decoder layer, in the order in which the stream meets them."""
        attn = (self.attn_norm, self.attn_readers)
        if not self.is_parallel(config):
            mlp = (self.mlp_norm, self.mlp_readers)
            return (
                Block("attn", (attn,), (self.attn_writer,), "attn_shortcut"),
                Block("mlp", (mlp,), (self.mlp_writer,), "mlp_shortcut"),
            )
        if self.mlp_norm is None:
            reads = ((self.attn_norm, self.attn_readers + self.mlp_readers),)
        else:
            reads = (attn, (self.mlp_norm, self.mlp_readers))
        return (Block("parallel", reads, (self.attn_writer, self.mlp_writer), "attn_shortcut"),)

    def num_sites(self, config) -> int:
        """Norms that read the stream: one before every block and one before the head (SliceGPT, section 3.3)."""
        return config.num_hidden_layers * len(self.blocks(config)) + 1


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(
        attn_readers=("self_attn.qkv_proj",),
        attn_dropout="resid_attn_dropout",
        mlp_readers=("mlp.gate_up_proj",),
        mlp_dropout="resid_mlp_dropout",
    ),
    "opt": Family(
        body="decoder",
        embeddings=("embed_tokens", "embed_positions"),
        final_norm="final_layer_norm",
        attn_norm="self_attn_layer_norm",
        attn_writer="self_attn.out_proj",
        attn_dropout="dropout",
        mlp=("fc1", "activation_fn", "fc2"),
        mlp_norm="final_layer_norm",
        mlp_readers=("fc1",),
        mlp_writer="fc2",
        mlp_dropout="dropout",
        layer_norm=True,
        size_keys=("hidden_size", "word_embed_proj_dim"),
        requires=(
            ("do_layer_norm_before", True, "a norm after the block acts in the original basis of the residual stream"),
            ("_remove_final_layer_norm", False, "without a final norm the head reads the stream unnormalised"),
        ),
    ),
    "phi": Family(
        final_norm="final_layernorm",
        attn_writer="self_attn.dense",
        attn_dropout="resid_dropout",
        mlp_norm=None,
        mlp_readers=("mlp.fc1",),
        mlp_writer="mlp.fc2",
        mlp_dropout="resid_dropout",
        layer_norm=True,
        parallel=True,
    ),
}

POST_NORM = "its post-norms act in the original basis of the residual stream, which does not commute with a rotation"
NOT_SLICEABLE: dict[str, str] = {family: POST_NORM for family in ("gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3")}
"""Families that computational invariance excludes, and why."""


def family_of(config) -> Family:
    """
    The row of a model's configuration.

    Args:
        config (`PreTrainedConfig`): of a dense or a sliced model.

    Raises:
        ValueError: the family is not in the table, cannot be sliced, or this variant of it cannot.
    """
    model_type = config.model_type.removeprefix("sliced_")
    if model_type not in FAMILIES:
        reason = NOT_SLICEABLE.get(model_type, "no table row describes where it reads and writes the residual stream")
        raise ValueError(f"Cannot slice model_type={model_type!r}: {reason}. Supported: {', '.join(FAMILIES)}.")
    family = FAMILIES[model_type]
    for key, value, reason in family.requires:
        if getattr(config, key, value) != value:
            raise ValueError(
                f"Cannot slice this {model_type} model: {key}={getattr(config, key)!r}, and {reason}. "
                f"Only {model_type} models with {key}={value!r} can be sliced."
            )
    return family
