"""A row of the table of families: names of modules, and the few facts in which control flow differs."""

from dataclasses import dataclass
from typing import Any


EXPERTS_KEEP_WIDTH = "experts write as many dimensions as they read"


@dataclass(frozen=True)
class Block:
    """
    A part of a decoder layer between two sites: it reads the stream at the first, and adds to it before the second.

    Names are relative to the decoder layer.
    """

    kind: str
    """`"attn"`, `"mlp"`, or `"parallel"` where one residual connection spans both."""
    reads: tuple[tuple[str | None, tuple[str, ...]], ...]
    """Pairs of a norm and the weights that read its output; `None` where they read the stream itself."""
    writers: tuple[str, ...]
    """Weights whose outputs are added to the stream."""
    shortcut: str
    """The linear layer on the residual connection of a sliced layer, where sites differ in their basis."""
    post_norm: str | None = None
    """A norm of the writers' output, whose own output is added to the stream."""
    keeps_width: bool = False
    """Whether the site after the block must be as wide as the site before it."""


@dataclass(frozen=True)
class StockClass:
    """
    A class of transformers that holds a stream of another width than that of the dense model.

    Args:
        model_type (`str`, *optional*): of the class; the family's own by default.
        by_heads (`bool`): whether `hidden_size` must be a multiple of the number of heads.
        multiple_of (`int`): of which `hidden_size` must be a multiple.
        changes (`tuple`): config keys that hold another value than in the dense model: `(key, value)`.
        requires (`tuple`): config keys of the dense model that must hold a value: `(key, value)`.
        only (`str`, *optional*):
            Tools whose own code for this class reads `head_dim`, where some divide `hidden_size` by the heads instead.
    """

    model_type: str | None = None
    by_heads: bool = False
    multiple_of: int = 1
    changes: tuple[tuple[str, Any], ...] = ()
    requires: tuple[tuple[str, Any], ...] = ()
    only: str | None = None


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
    attn_norm: str | None = "input_layernorm"
    """`None` where attention reads the stream itself."""
    attn_readers: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attn_writer: str = "self_attn.o_proj"
    attn_dropout: str | None = None
    """A module, or a number on the layer: the dropout of the block's output."""
    attn_post_norm: str | None = None
    """A norm of the block's output, behind the block. Families have it behind both blocks, or behind neither."""

    mlp: tuple[str, ...] = ("mlp",)
    """Modules that are applied one after another."""
    mlp_norm: str | None = "post_attention_layernorm"
    """`None` where attention and MLP read the same norm or, in a sequential layer, the MLP reads the stream itself."""
    mlp_readers: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_writer: str = "mlp.down_proj"
    mlp_dropout: str | None = None
    mlp_post_norm: str | None = None

    layer_norm: bool = False
    """Whether norms subtract the mean. They become RMSNorms once the writers are centred."""
    norm_eps: float | None = None
    """The eps of the norms, where only their code has it."""
    gain_offset: float = 0.0
    """The number that norms add to their weight before they multiply by it."""
    residual_multiplier: str | None = None
    """A number on the layer that multiplies the outputs of its blocks."""
    parallel: bool = False
    """Whether attention and MLP share one residual connection."""
    neurons_key: str = "intermediate_size"
    """Config key that holds the number of neurons of an MLP."""
    moe: bool = False
    """Whether the MLP is a mixture of experts."""
    ends_meet: str | None = None
    """Why the last site must be as wide as the first unless a projection follows the final norm, if it must."""
    head_divides: bool = False
    """Whether the head's input is divided by a number in proportion to `hidden_size`."""
    returns_tuple: bool = False
    """Whether layers return the stream in a tuple, with attention weights behind it."""
    size_keys: tuple[str, ...] = ("hidden_size",)
    """Config keys that hold the width of the stream."""
    narrower: tuple[StockClass, ...] = (StockClass(),)
    """
    Classes that hold a narrower stream, the first that accepts a width is taken. There are none where the family's
    own class derives the size of its heads from `hidden_size`: then the stream keeps its width.
    """
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
                Block("attn", (attn,), (self.attn_writer,), "attn_shortcut", self.attn_post_norm),
                Block("mlp", (mlp,), (self.mlp_writer,), "mlp_shortcut", self.mlp_post_norm, keeps_width=self.moe),
            )
        if self.mlp_norm is None:
            reads = ((self.attn_norm, self.attn_readers + self.mlp_readers),)
        else:
            reads = (attn, (self.mlp_norm, self.mlp_readers))
        return (Block("parallel", reads, (self.attn_writer, self.mlp_writer), "attn_shortcut"),)

    @property
    def post_norms(self) -> bool:
        """Whether there are norms behind the blocks. Their gains act along the dimensions of the dense stream."""
        return self.attn_post_norm is not None

    def num_sites(self, config) -> int:
        """Returns the number of norms that read the stream: one before every block, one before the head."""
        return config.num_hidden_layers * len(self.blocks) + 1

    def site_name(self, site: int, config) -> str:
        """Returns where a site is, in words."""
        layer, block = divmod(site, len(self.blocks))
        if layer == config.num_hidden_layers:
            return "before the head"
        return f"layer {layer}, before its {self.blocks[block].kind} block"

    def equal_sites(self, config, tied: bool) -> list[tuple[int, int, str]]:
        """
        Returns pairs of sites that must be equally wide, and why.

        Args:
            config (`PreTrainedConfig`): of a dense or a sliced model.
            tied (`bool`): whether the head shares the embedding's matrix. Then projections at both ends of the stream
                allow the first and the last site to differ.
        """
        last = self.num_sites(config) - 1
        pairs = [
            (site, site + 1, EXPERTS_KEEP_WIDTH)
            for site in range(last)
            if self.blocks[site % len(self.blocks)].keeps_width
        ]
        return pairs + [(0, last, self.ends_meet)] * (self.ends_meet is not None and not tied)
