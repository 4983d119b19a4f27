"""A row of the table of families: names of modules, and the few facts in which control flow differs."""

from dataclasses import dataclass, replace
from typing import Any


EXPERTS_KEEP_WIDTH = "experts write as many dimensions as they read"
CACHE_NAMES = ("cache", "past_key_values", "layer_past", "cache_params")
"""What arguments that hold the cache are called, by version of transformers and by family."""


class Transposed(str):
    """The name of a bare tensor whose stream is not the axis that tensors of its kind have it on."""


def has(layer, name: str) -> bool:
    """Tells whether a decoder layer has a module or a tensor. One that is `None` counts as absent."""
    for part in filter(None, name.split(".")):
        layer = getattr(layer, part, None)
    return layer is not None


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

    def of(self, layer) -> "Block":
        """Returns the block with the names only that a layer has: layers of one model may be of several kinds."""
        reads = tuple((norm, tuple(name for name in names if has(layer, name))) for norm, names in self.reads)
        return replace(self, reads=reads, writers=tuple(name for name in self.writers if has(layer, name)))


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
    Names of the modules of one model family. A reader or a writer is a module with a weight, or a bare parameter. Of
    readers, writers and modules of attention and MLP, those count that a layer has.

    `body` is relative to the base model (`model.base_model`), `layers`, `embeddings` and `final_norm` to the body,
    `head` to the causal language model, everything else to a decoder layer.
    """

    body: str = ""
    layers: str = "layers"
    embeddings: tuple[str, ...] = ("embed_tokens",)
    """Tables whose sum starts the stream: tokens first, then learned positions."""
    final_norm: str = "norm"
    head: str = "lm_head"

    attn: tuple[str, ...] = ("self_attn",)
    """Modules that mix tokens. Of those that a layer has, each reads the same norm, and the outputs add up."""
    attn_norm: str | None = "input_layernorm"
    """`None` where attention reads the stream itself."""
    attn_readers: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attn_writer: str = "self_attn.o_proj"
    more_attn_writers: tuple[str, ...] = ()
    """Writers of the block besides, or in layers of another kind."""
    attn_dropout: str | None = None
    """A module, or a number on the layer: the dropout of the block's output."""
    attn_post_norm: str | None = None
    """A norm of the block's output, behind the block. Families have it behind both blocks, or behind neither."""

    mlp: tuple[str, ...] = ("mlp",)
    """Modules that are applied one after another, or with `mlp_adds` to the same input."""
    mlp_adds: bool = False
    """Whether the modules of the MLP read the same norm, and their outputs add up."""
    mlp_norm: str | None = "post_attention_layernorm"
    """`None` where attention and MLP read the same norm or, in a sequential layer, the MLP reads the stream itself."""
    mlp_readers: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_writer: str = "mlp.down_proj"
    more_mlp_writers: tuple[str, ...] = ()
    """Writers of the block besides, or in layers of another kind."""
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
    input_multipliers: tuple[tuple[str, str], ...] = ()
    """Modules that mix tokens, and the numbers on the layer that multiply what they read: `(module, number)`."""
    output_multipliers: tuple[tuple[str, str], ...] = ()
    """
    Writers, and the numbers that multiply what they put out: `(writer, number)`. A number on the layer multiplies the
    output of a module that mixes tokens; one of a module is applied by the module itself.
    """
    parallel: bool = False
    """Whether attention and MLP share one residual connection."""
    single: bool = False
    """Whether a layer is one block, whose module is named by `attn`, whatever it does."""
    adds_residual: bool = False
    """Whether modules of attention and MLP take the stream as another argument, `residual`, and add it themselves."""
    wide_entry: str | None = None
    """Why the tables keep their width, with a projection between them and the stream, if they do."""
    neurons_key: str = "intermediate_size"
    """Config key that holds the number of neurons of an MLP; empty where it is four times the hidden size."""
    neuron_units: int = 1
    """By how many that key counts each neuron."""
    moe: bool = False
    """Whether the MLP of any layer is a mixture of experts."""
    active_key: str = "num_experts_per_tok"
    """Config key that holds the number of experts that a token is sent to."""
    ends_meet: str | None = None
    """Why the last site must be as wide as the first unless a projection follows the final norm, if it must."""
    head_divides: bool = False
    """Whether the head's input is divided by a number in proportion to `hidden_size`."""
    begin_token: bool = False
    """Whether models go astray in text that does not begin with `bos_token_id`."""
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
    def keeps_neurons(self) -> bool:
        """Whether there are no neurons to delete: those of experts stay, and those that no config key counts."""
        return self.moe or self.single or not self.neurons_key

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of one decoder layer, in the order in which the stream meets them."""
        attn = (self.attn_norm, self.attn_readers)
        attn_writers = (self.attn_writer, *self.more_attn_writers)
        mlp_writers = (self.mlp_writer, *self.more_mlp_writers)
        if self.single:
            return (Block("attn", (attn,), attn_writers, "attn_shortcut", keeps_width=self.moe),)
        if not self.parallel:
            mlp = (self.mlp_norm, self.mlp_readers)
            return (
                Block("attn", (attn,), attn_writers, "attn_shortcut", self.attn_post_norm),
                Block("mlp", (mlp,), mlp_writers, "mlp_shortcut", self.mlp_post_norm, keeps_width=self.moe),
            )
        if self.mlp_norm is None:
            reads = ((self.attn_norm, self.attn_readers + self.mlp_readers),)
        else:
            reads = (attn, (self.mlp_norm, self.mlp_readers))
        return (Block("parallel", reads, attn_writers + mlp_writers, "attn_shortcut", keeps_width=self.moe),)

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


@dataclass(frozen=True)
class Tower:
    """
    The text model inside a model of images and text. All names are relative to the base model.

    Args:
        name (`str`): of the text model.
        deep_writers (`str`):
            Names of weights that add features of images to its stream, one for each of its first layers, behind which
            it does: `{}` stands for the number of the layer. Empty where images enter beside the table alone.
    """

    name: str = "language_model"
    deep_writers: str = ""


# What rows of several files share

IN_TRANSFORMERS = (StockClass(only="transformers"),)
IN_EIGHTS = (StockClass(multiple_of=8, only="transformers"),)
"""For experts: grouped products need such rows."""
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLA = ("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
"""Readers of attention whose keys and values, and perhaps queries, have a low rank."""
DENSE = ("mlp.gate_proj", "mlp.up_proj")
ROUTED = ("mlp.gate", "mlp.experts.gate_up_proj")
SHARED = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")
MIXED = {
    "mlp_readers": (*DENSE, *ROUTED, *SHARED),
    "more_mlp_writers": ("mlp.experts.down_proj", "mlp.shared_experts.down_proj"),
    "moe": True,
}
"""Dense layers, and layers with experts, some of which all tokens share."""
GATED = {
    "mlp_readers": (
        *(*DENSE, *ROUTED, "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate"),
    ),
    "more_mlp_writers": ("mlp.experts.down_proj", "mlp.shared_expert.down_proj"),
    "moe": True,
}
"""As `MIXED`, with a gate in front of the one expert that all tokens share."""
