"""
Sliced models: each family's own classes, with a width of its own at every site of the residual stream.

No decoder forward is copied. A sliced model *is* the family's model: its constructor builds the dense model without
values, then resizes every weight on the stream, replaces the norms, and gives each decoder layer the forward of
[`SlicedLayerMixin`].
"""

import inspect
import sys

from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_sliced import SLICED_CONFIGS
from .families import family_of
from .family import Block, Family
from .weights import Reader, Writer, has_bias, resize_mlp


class SlicedLayerMixin:
    """
    The forward of a decoder layer, the same for every family. It comes before the family's own layer class.

    A block reads the stream through its norm. Its output is added to the stream or, where the next site has another
    basis, to the product of the stream and the shortcut (SliceGPT, section 3.3).
    """

    _family: Family
    _blocks: tuple[Block, ...]
    embedding_projection: nn.Linear | None
    """Leads from the table of embeddings to the stream, in the first layer, where the table is wider."""
    _argument_names: tuple[str, ...]
    """Arguments of the family's forward after `hidden_states`: some models pass them to their layers by position."""

    def _drop_out_and_scale(self, output, dropout):
        """Applies a block's dropout, and the family's multiplier, to its output."""
        dropout = getattr(self, dropout) if dropout else 0.0
        if isinstance(dropout, nn.Module):
            output = dropout(output)
        else:
            output = nn.functional.dropout(output, p=dropout, training=self.training)
        multiplier = self._family.residual_multiplier
        return output * getattr(self, multiplier) if multiplier else output

    def _attn(self, normed, kwargs):
        """Returns the output of attention, and its weights or `None`."""
        output, weights, *_ = getattr(self, self._family.attn)(hidden_states=normed, **kwargs)
        return self._drop_out_and_scale(output, self._family.attn_dropout), weights

    def _mlp(self, normed):
        """Returns the output of the MLP."""
        for name in self._family.mlp:
            normed = getattr(self, name)(normed)
        return self._drop_out_and_scale(normed, self._family.mlp_dropout)

    def mlp_output(self, stream):
        """Computes what the MLP adds to the stream `(..., width)`, in a block of its own or beside attention."""
        return self._mlp(getattr(self, self._family.mlp_norm or self._family.attn_norm)(stream))

    def block_output(self, kind, stream, kwargs):
        """
        Computes what one block adds to the stream.

        Args:
            kind (`str`): `"attn"`, `"mlp"` or `"parallel"`, see [`family.Block`].
            stream (`torch.Tensor` of shape `(batch, tokens, width)`): the stream at the block's site.
            kwargs (`dict`): arguments of attention that come from the model: mask, positions, cache.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, width of the writers)`.
        """
        return self._block(kind, stream, kwargs)[0]

    def _block(self, kind, stream, kwargs):
        """Returns what a block adds to the stream, and the weights of its attention or `None`."""
        family = self._family
        if kind == "mlp":
            return self.mlp_output(stream), None
        normed = getattr(self, family.attn_norm)(stream)
        output, weights = self._attn(normed, kwargs)
        if kind == "attn":
            return output, weights
        if family.mlp_norm is not None:
            normed = getattr(self, family.mlp_norm)(stream)
        return output + self._mlp(normed), weights

    def forward(self, hidden_states, *args, **kwargs):
        kwargs.update(zip(self._argument_names, args, strict=False))
        if self.embedding_projection is not None:
            hidden_states = self.embedding_projection(hidden_states)
        weights = None
        for block in self._blocks:
            output, block_weights = self._block(block.kind, hidden_states, kwargs)
            weights = block_weights if weights is None else weights
            shortcut = getattr(self, block.shortcut)
            hidden_states = (hidden_states if shortcut is None else shortcut(hidden_states)) + output
        return (hidden_states, weights) if self._family.returns_tuple else hidden_states


class ProjectedNorm(nn.RMSNorm):
    """The final norm of a model whose head shares the embedding's matrix, with a projection back to D dimensions."""

    def __init__(self, width, out_features, bias, eps, device=None, dtype=None):
        super().__init__(width, eps=eps, device=device, dtype=dtype)
        self.projection = nn.Linear(width, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, hidden_states):
        return self.projection(super().forward(hidden_states))


def _resize_norm(parent, name, width, family, like, out_features=None):
    """Replaces a norm by an RMSNorm over another width or, with `out_features`, by a [`ProjectedNorm`]."""
    old = getattr(parent, name)
    # The stream is scaled by sqrt(width / D), so that an RMSNorm over `width` dimensions divides exactly as the dense
    # norm does over D, eps included. Gains and biases are in the readers.
    eps = family.norm_eps or getattr(old, "variance_epsilon", None) or old.eps
    placement = {"eps": eps, "device": like.device, "dtype": like.dtype}
    if out_features is None:
        new = nn.RMSNorm(width, **placement)
    else:
        new = ProjectedNorm(width, out_features, has_bias(old), **placement)
    # The norm holds ones. Gemma would initialise it with zeros, because its own norms multiply by 1 + weight.
    new._is_hf_initialized = True
    setattr(parent, name, new)


def _shortcut(width_in, width_out, like):
    return nn.Linear(width_in, width_out, bias=False, device=like.device, dtype=like.dtype)


class SlicedModelMixin:
    """The constructor of a sliced model: builds the family's dense model, and resizes it to the configuration."""

    _auto_map: dict[str, str]
    """Names of the family's classes in the copy of these files that a checkpoint brings, by Auto class."""

    def __init__(self, config, *args, **kwargs):
        with config.dense_sizes():
            super().__init__(config, *args, **kwargs)
        self._slice()
        self.post_init()

    def _slice(self):
        """Resizes weights and norms to the widths, and adds shortcuts and projections."""
        config, family = self.config, family_of(self.config)
        body = self.base_model.get_submodule(family.body)
        layers = getattr(body, family.layers)
        widths = config.widths or [config.hidden_size] * family.num_sites(config)
        like = body.get_submodule(family.embeddings[0]).weight

        if config.embedding_size is None:
            bias = has_bias(getattr(body, family.final_norm)) and hasattr(self, family.head)
            for name, child in self.named_children():
                if isinstance(child, nn.Linear):  # The head, of any kind, reads the last hidden state.
                    Reader(self, name).resize(widths[-1], bias)
        if self.base_model is not self and isinstance(self.base_model, SlicedModelMixin):
            return  # Most classifiers build their base by AutoModel, which has sliced it already.

        site = 0
        for index, layer in enumerate(layers):
            layer.__class__ = globals()["Sliced" + type(layer).__name__]
            layer.register_module("embedding_projection", None)
            layer._family, layer._blocks = family, family.blocks
            for block in layer._blocks:
                self._slice_block(layer, block, widths[site], widths[site + 1], like)
                shortcut = _shortcut(widths[site], widths[site + 1], like) if config.shortcuts else None
                layer.register_module(block.shortcut, shortcut)
                site += 1
            if config.intermediate_sizes is not None:
                resize_mlp(layer, family, config.intermediate_sizes[index])
        if config.embedding_size is not None:
            layers[0].embedding_projection = _shortcut(config.embedding_size, widths[0], like)
            _resize_norm(body, family.final_norm, widths[-1], family, like, config.embedding_size)
        else:
            for name in family.embeddings:
                Writer(body, name).resize(widths[0])
            _resize_norm(body, family.final_norm, widths[-1], family, like)
        for module in self.modules():
            if getattr(module, "_no_split_modules", None):
                module._no_split_modules = [type(layers[0]).__name__]

    @staticmethod
    def _slice_block(layer: nn.Module, block: Block, width_in: int, width_out: int, like: Tensor):
        """Resizes a block's readers and norms to the width before it, its writers to the width after it."""
        for norm, readers in block.reads:
            for reader in readers:
                Reader(layer, reader).resize(width_in, has_bias(getattr(layer, norm)))
            _resize_norm(layer, norm, width_in, layer._family, like)
        for writer in block.writers:
            Writer(layer, writer).resize(width_out)

    def get_correct_experts_implementation(self, requested_experts):
        # Grouped products need rows that are multiples of 16 bytes, 8 numbers in half precision. The model may be
        # converted to half precision later.
        if requested_experts in (None, "grouped_mm") and any(width % 8 for width in self.config.widths or ()):
            requested_experts = "eager"
        return super().get_correct_experts_implementation(requested_experts)

    def save_pretrained(self, *args, **kwargs):
        # transformers adds this class and its configuration to the map. The family's other classes are added here, so
        # that a checkpoint loads as any of them.
        self.config.auto_map = dict(self._auto_map)
        super().save_pretrained(*args, **kwargs)

    # transformers reads the source of a class's module to find out what its layers support. That source is the
    # family's, because the layers are.

    @classmethod
    def _can_set_attn_implementation(cls):
        return cls._dense_class._can_set_attn_implementation()

    @classmethod
    def _can_set_experts_implementation(cls):
        return cls._dense_class._can_set_experts_implementation()


def _sliced_layer_class(base: type) -> type:
    """Derives a sliced class from a family's decoder layer."""
    names = tuple(inspect.signature(base.forward).parameters)[2:]
    namespace = {"__module__": __name__, "_argument_names": names}
    return type(f"Sliced{base.__name__}", (SlicedLayerMixin, base), namespace)


def _sliced_model_class(config_class: type, base: type, auto_map: dict[str, str]) -> type:
    """Derives a sliced class from a family's model."""
    namespace = {
        "__module__": __name__,
        "__doc__": f"Sliced {base.__name__}, see [`SlicedModelMixin`].",
        "config_class": config_class,
        "_dense_class": base,
        "_auto_map": auto_map,
    }
    return type(f"Sliced{base.__name__}", (SlicedModelMixin, base), namespace)


AUTO_CLASSES = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


def _register(config_class: type):
    """Defines a family's classes in this module, where pickle finds them, and registers them with the Auto classes."""
    dense_config_class, auto_map = config_class.__mro__[2], {}
    for auto_class in AUTO_CLASSES:
        if dense_config_class not in auto_class._model_mapping:
            continue
        base = auto_class._model_mapping[dense_config_class]
        sliced = _sliced_model_class(config_class, base, auto_map)
        globals()[sliced.__name__] = sliced
        auto_map[auto_class.__name__] = f"{__name__.rpartition('.')[2]}.{sliced.__name__}"
        auto_class.register(config_class, sliced, exist_ok=True)
        sliced.register_for_auto_class(auto_class)
    (layer_name,) = base._no_split_modules
    layer = _sliced_layer_class(getattr(sys.modules[base.__module__], layer_name))
    globals()[layer.__name__] = layer


for _config_class in SLICED_CONFIGS.values():
    _register(_config_class)
