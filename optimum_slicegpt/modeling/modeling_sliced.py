"""
Sliced models: each family's own classes, with a width of its own at every site of the residual stream.

No decoder forward is copied. A sliced model *is* the family's model: its constructor builds the dense skeleton, then
narrows every linear layer that touches the stream, swaps the norms, and gives each decoder layer the forward of
[`SlicedLayerMixin`].
"""

import inspect
import sys

from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, AutoModel, AutoModelForCausalLM

from .configuration_sliced import SLICED_CONFIGS
from .families import Block, Family, family_of
from .weights import Reader, Writer


class SlicedLayerMixin:
    """
    The one forward of a decoder layer, for every family. Goes in front of the family's own layer class.

    A block reads the stream through its norm; its output is added to what the shortcut makes of the residual
    connection, because the next block lives in another basis (SliceGPT, equation 8).
    """

    _family: Family
    _blocks: tuple[Block, ...]
    _argument_names: tuple[str, ...]
    """Of the family's forward, behind `hidden_states`: some models call their layers by position."""

    def _added(self, output, dropout):
        """A block's output, as it is added to the stream."""
        dropout = getattr(self, dropout) if dropout else 0.0
        if isinstance(dropout, nn.Module):
            output = dropout(output)
        else:
            output = nn.functional.dropout(output, p=dropout, training=self.training)
        multiplier = self._family.residual_multiplier
        return output * getattr(self, multiplier) if multiplier else output

    def _attn(self, normed, kwargs):
        output = getattr(self, self._family.attn)(hidden_states=normed, **kwargs)
        return self._added(output[0], self._family.attn_dropout)

    def _mlp(self, normed):
        for name in self._family.mlp:
            normed = getattr(self, name)(normed)
        return self._added(normed, self._family.mlp_dropout)

    def block_output(self, kind, hidden_states, kwargs):
        """
        What one block adds to the stream.

        Args:
            kind (`str`): `"attn"`, `"mlp"` or `"parallel"`, see [`families.Block`].
            hidden_states (`torch.Tensor` of shape `(batch, tokens, width)`): the stream at the block's site.
            kwargs (`dict`): what the model passes on to attention: mask, positions, cache.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, width of the writers)`.
        """
        family = self._family
        if kind == "mlp":
            return self._mlp(getattr(self, family.mlp_norm)(hidden_states))
        normed = getattr(self, family.attn_norm)(hidden_states)
        output = self._attn(normed, kwargs)
        if kind == "attn":
            return output
        if family.mlp_norm is not None:
            normed = getattr(self, family.mlp_norm)(hidden_states)
        return output + self._mlp(normed)

    def forward(self, hidden_states, *args, **kwargs):
        kwargs.update(zip(self._argument_names, args, strict=False))
        for block in self._blocks:
            output = self.block_output(block.kind, hidden_states, kwargs)
            hidden_states = getattr(self, block.shortcut)(hidden_states) + output
        return (hidden_states, None) if self._family.returns_tuple else hidden_states


def _has_bias(norm):
    return getattr(norm, "bias", None) is not None


def _resize_norm(parent, name, width, family, like):
    old = getattr(parent, name)
    # With the stream scaled by sqrt(width / D), the stock norm over `width` dimensions divides exactly as the dense
    # one did, eps included. Gains and biases live in the readers.
    eps = family.norm_eps or getattr(old, "variance_epsilon", None) or old.eps
    new = nn.RMSNorm(width, eps=eps, device=like.device, dtype=like.dtype)
    # Gemma would fill it with zeros, because its own norms multiply by 1 + weight. It holds ones already.
    new._is_hf_initialized = True
    setattr(parent, name, new)


class SlicedModelMixin:
    """Narrows a freshly built dense skeleton to the widths of its configuration."""

    def __init__(self, config, *args, **kwargs):
        with config.dense_sizes():
            super().__init__(config, *args, **kwargs)
        self._slice()
        self.post_init()

    def _slice(self):
        config, family = self.config, family_of(self.config)
        body = self.base_model.get_submodule(family.body)
        layers = getattr(body, family.layers)
        widths = config.widths or [config.hidden_size] * family.num_sites(config)
        like = body.get_submodule(family.embeddings[0]).weight

        for name in family.embeddings:
            Writer(body, name).resize(widths[0])
        site = 0
        for layer in layers:
            layer.__class__ = globals()["Sliced" + type(layer).__name__]
            layer._family, layer._blocks = family, family.blocks
            for block in layer._blocks:
                self._slice_block(layer, block, widths[site], widths[site + 1], like)
                site += 1
        bias = _has_bias(getattr(body, family.final_norm))
        _resize_norm(body, family.final_norm, widths[-1], family, like)
        if hasattr(self, family.head):
            Reader(self, family.head).resize(widths[-1], bias)
        for module in self.modules():
            if getattr(module, "_no_split_modules", None):
                module._no_split_modules = [type(layers[0]).__name__]

    @staticmethod
    def _slice_block(layer: nn.Module, block: Block, width_in: int, width_out: int, like: Tensor):
        for norm, readers in block.reads:
            for reader in readers:
                Reader(layer, reader).resize(width_in, _has_bias(getattr(layer, norm)))
            _resize_norm(layer, norm, width_in, layer._family, like)
        for writer in block.writers:
            Writer(layer, writer).resize(width_out)
        shortcut = nn.Linear(width_in, width_out, bias=False, device=like.device, dtype=like.dtype)
        setattr(layer, block.shortcut, shortcut)

    # transformers reads the source of a class's module to see what its layers can do. Ours are the family's.

    @classmethod
    def _can_set_attn_implementation(cls):
        return cls._dense_class._can_set_attn_implementation()

    @classmethod
    def _can_set_experts_implementation(cls):
        return cls._dense_class._can_set_experts_implementation()


def _sliced_layer_class(base: type) -> type:
    names = tuple(inspect.signature(base.forward).parameters)[2:]
    namespace = {"__module__": __name__, "_argument_names": names}
    return type(f"Sliced{base.__name__}", (SlicedLayerMixin, base), namespace)


def _sliced_model_class(config_class: type, base: type) -> type:
    namespace = {
        "__module__": __name__,
        "__doc__": f"Sliced {base.__name__}, see [`SlicedModelMixin`].",
        "config_class": config_class,
        "_dense_class": base,
    }
    return type(f"Sliced{base.__name__}", (SlicedModelMixin, base), namespace)


def _register(config_class: type):
    """Defines a family's classes in this module, so that they can be pickled, and tells the Auto classes."""
    dense_config_class = config_class.__mro__[2]
    for mapping, auto_class in ((MODEL_MAPPING, AutoModel), (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM)):
        base = mapping[dense_config_class]
        sliced = _sliced_model_class(config_class, base)
        globals()[sliced.__name__] = sliced
        auto_class.register(config_class, sliced, exist_ok=True)
    (layer_name,) = base._no_split_modules
    layer = _sliced_layer_class(getattr(sys.modules[base.__module__], layer_name))
    globals()[layer.__name__] = layer


for _config_class in SLICED_CONFIGS.values():
    _register(_config_class)
