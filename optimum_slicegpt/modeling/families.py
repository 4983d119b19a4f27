"""
Who reads and who writes the residual stream, family by family.

A family is a `model_type` of transformers. Its row holds names, never code: the one forward of a sliced decoder layer
([`modeling_sliced.SlicedLayerMixin`]), the fusion of norms, the rotation and the parameter count all read this table
and know no other names.
"""

from dataclasses import dataclass, replace
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
    """Pairs of a norm and the weights that read its output."""
    writers: tuple[str, ...]
    """Weights whose outputs are added to the stream."""
    shortcut: str
    """The linear layer on the residual connection of a sliced layer."""
    keeps_width: bool = False
    """Whether the site after it must be as wide as the one before."""


@dataclass(frozen=True)
class Family:
    """
    Names of the modules of one model family. A reader or a writer is a module with a weight, or a bare parameter.

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
    norm_eps: float | None = None
    """The eps of norms that have it in their code only."""
    gain_offset: float = 0.0
    """What norms add to their weight before they multiply by it."""
    residual_multiplier: str | None = None
    """A number on the layer, by which blocks' outputs are multiplied."""
    parallel: bool = False
    """Whether attention and MLP share one residual connection."""
    moe: bool = False
    """Whether the MLP is a mixture of experts."""
    restores_shape: bool = False
    """Whether the body ends by giving its output the shape that the embeddings had."""
    returns_tuple: bool = False
    """Whether layers return the stream in a tuple, with attention weights behind it."""
    size_keys: tuple[str, ...] = ("hidden_size",)
    """Config keys that hold the width of the stream."""
    variants: tuple[tuple[str, Any, dict[str, Any]], ...] = ()
    """Config keys that change this row when they hold a value: `(key, value, {field: other value})`."""
    requires: tuple[tuple[str, Any, str], ...] = ()
    """Config keys that must hold a value, and why: `(key, value, reason)`."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of one decoder layer, in the order in which the stream meets them."""
        attn = (self.attn_norm, self.attn_readers)
        if not self.parallel:
            mlp = (self.mlp_norm, self.mlp_readers)
            return (
                Block("attn", (attn,), (self.attn_writer,), "attn_shortcut"),
                Block("mlp", (mlp,), (self.mlp_writer,), "mlp_shortcut", keeps_width=self.moe),
            )
        if self.mlp_norm is None:
            reads = ((self.attn_norm, self.attn_readers + self.mlp_readers),)
        else:
            reads = (attn, (self.mlp_norm, self.mlp_readers))
        return (Block("parallel", reads, (self.attn_writer, self.mlp_writer), "attn_shortcut"),)

    def num_sites(self, config) -> int:
        """Norms that read the stream: one before every block and one before the head (SliceGPT, section 3.3)."""
        return config.num_hidden_layers * len(self.blocks) + 1

    def equal_sites(self, config, tied: bool) -> list[tuple[int, int, str]]:
        """Pairs of sites that must be equally wide, and why. Projections to and from a tied table keep ends apart."""
        last = self.num_sites(config) - 1
        pairs = [
            (site, site + 1, EXPERTS_KEEP_WIDTH)
            for site in range(last)
            if self.blocks[site % len(self.blocks)].keeps_width
        ]
        return pairs + [(0, last, ENDS_MEET)] * (self.restores_shape and not tied)


EXPERTS_KEEP_WIDTH = "experts write as many dimensions as they read"
ENDS_MEET = "the model gives its output the shape that the embeddings had"

FAMILIES: dict[str, Family] = {
    # RMSNorm
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "smollm3": Family(),
    "phi3": Family(
        attn_readers=("self_attn.qkv_proj",),
        attn_dropout="resid_attn_dropout",
        mlp_readers=("mlp.gate_up_proj",),
        mlp_dropout="resid_mlp_dropout",
    ),
    "granite": Family(residual_multiplier="residual_multiplier"),
    "gemma": Family(gain_offset=1.0),
    # RMSNorm, mixtures of experts
    "mixtral": Family(
        mlp_readers=("mlp.gate", "mlp.experts.gate_up_proj"),
        mlp_writer="mlp.experts.down_proj",
        moe=True,
    ),
    "qwen3_moe": Family(
        mlp_readers=("mlp.gate", "mlp.experts.gate_up_proj"),
        mlp_writer="mlp.experts.down_proj",
        moe=True,
        requires=(
            ("mlp_only_layers", [], "layers without experts have other readers and writers"),
            ("decoder_sparse_step", 1, "layers without experts have other readers and writers"),
        ),
    ),
    # LayerNorm
    "olmo": Family(layer_norm=True, norm_eps=1e-5),
    "cohere": Family(mlp_norm=None, layer_norm=True, parallel=True),
    "starcoder2": Family(mlp_readers=("mlp.c_fc",), mlp_writer="mlp.c_proj", layer_norm=True),
    "nemotron": Family(mlp_readers=("mlp.up_proj",), layer_norm=True, gain_offset=1.0),
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
    "gpt_neox": Family(
        embeddings=("embed_in",),
        final_norm="final_layer_norm",
        attn="attention",
        attn_readers=("attention.query_key_value",),
        attn_writer="attention.dense",
        attn_dropout="post_attention_dropout",
        mlp_readers=("mlp.dense_h_to_4h",),
        mlp_writer="mlp.dense_4h_to_h",
        mlp_dropout="post_mlp_dropout",
        layer_norm=True,
        variants=(("use_parallel_residual", True, {"parallel": True}),),
    ),
    "stablelm": Family(
        mlp_dropout="dropout",
        layer_norm=True,
        variants=(("use_parallel_residual", True, {"parallel": True, "mlp_norm": None}),),
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
    "gpt2": Family(
        layers="h",
        embeddings=("wte", "wpe"),
        final_norm="ln_f",
        attn="attn",
        attn_norm="ln_1",
        attn_readers=("attn.c_attn",),
        attn_writer="attn.c_proj",
        mlp_norm="ln_2",
        mlp_readers=("mlp.c_fc",),
        mlp_writer="mlp.c_proj",
        layer_norm=True,
        restores_shape=True,
        size_keys=("n_embd",),
        requires=(("add_cross_attention", False, "cross-attention is a third block of its layers"),),
    ),
    "falcon": Family(
        layers="h",
        embeddings=("word_embeddings",),
        final_norm="ln_f",
        attn="self_attention",
        attn_readers=("self_attention.query_key_value",),
        attn_writer="self_attention.dense",
        attn_dropout="hidden_dropout",
        mlp_norm=None,
        mlp_readers=("mlp.dense_h_to_4h",),
        mlp_writer="mlp.dense_4h_to_h",
        mlp_dropout="hidden_dropout",
        layer_norm=True,
        parallel=True,
        returns_tuple=True,
        variants=(("num_ln_in_parallel_attn", 2, {"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"}),),
        requires=(
            ("alibi", False, "its attention biases are scaled by a hidden size that slicing changes"),
            ("parallel_attn", True, "its sequential layers drop out their attention's output with another rate"),
        ),
    ),
}

POST_NORM = "its post-norms act in the original basis of the residual stream, which does not commute with a rotation"
PER_CHANNEL = "it scales the residual stream channel by channel, which does not commute with a rotation"
NOT_SLICEABLE: dict[str, str] = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"), POST_NORM),
    **dict.fromkeys(("gemma4", "gemma4_text", "olmo2", "olmo3", "flex_olmo", "glm4", "exaone4"), POST_NORM),
    "openai-gpt": POST_NORM,
    "doge": PER_CHANNEL,
}
"""Families that computational invariance excludes, and why."""


def family_of(config) -> Family:
    """
    The row of a model's configuration, as its variant of the family has it.

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
    for key, value, changes in family.variants:
        if getattr(config, key) == value:
            family = replace(family, **changes)
    return family


def check_equal_widths(config, widths, tied: bool) -> None:
    """
    Checks widths against what the family's code can compute.

    Args:
        config (`PreTrainedConfig`): of a dense or a sliced model.
        widths (`Sequence[int]`): one per site.
        tied (`bool`): whether the head shares the embedding's matrix.

    Raises:
        ValueError: two sites that must be equally wide are not.
    """
    for first, second, reason in family_of(config).equal_sites(config, tied):
        if widths[first] != widths[second]:
            raise ValueError(
                f"widths holds {widths[first]} at site {first} and {widths[second]} at site {second}; they must be "
                f"equal, because {reason}."
            )
