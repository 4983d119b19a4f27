"""
Sliced models: each family's own classes, with a width of its own at every site of the residual stream.

No decoder forward is copied. A sliced model *is* the family's model: its constructor builds the dense skeleton, then
narrows every linear layer that touches the stream, swaps the norms, and gives each decoder layer the forward of
[`SlicedLayerMixin`].
"""

import inspect
import sys

from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, AutoModel, AutoModelForCausalLM

from .configuration_sliced import SLICED_CONFIGS
from .families import FAMILIES, Block, Family, family_of


class SlicedLayerMixin:
    """
    The one forward of a decoder layer, for every family. Goes in front of the family's own layer class.

    A block reads the stream through its norm; its output is added to what the shortcut makes of the residual
    connection, because the next block lives in another basis (SliceGPT, equation 8).
    """

    _family: Family
    _blocks: tuple[Block, ...]
    _argument_names: tuple[str, ...]

    def _dropout(self, hidden_states, name):
        dropout = getattr(self, name) if name else 0.0
        if isinstance(dropout, nn.Module):
            return dropout(hidden_states)
        return nn.functional.dropout(hidden_states, p=dropout, training=self.training)

    def _attn(self, normed, kwargs):
        output = getattr(self, self._family.attn)(hidden_states=normed, **kwargs)
        return self._dropout(output[0], self._family.attn_dropout)

    def _mlp(self, normed):
        for name in self._family.mlp:
            normed = getattr(self, name)(normed)
        return self._dropout(normed, self._family.mlp_dropout)

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
        return hidden_states


def _norm_eps(norm):
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _has_bias(norm):
    return getattr(norm, "bias", None) is not None


def _replace(parent, name, module):
    owner, _, child = name.rpartition(".")
    setattr(parent.get_submodule(owner), child, module)


def _resize(parent, name, in_features=None, out_features=None, bias=False):
    """Swaps a linear layer for one of other sizes, with a bias if it had one or is to get one."""
    old = parent.get_submodule(name)
    new = nn.Linear(
        in_features or old.in_features,
        out_features or old.out_features,
        bias=bias or old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    _replace(parent, name, new)


def _resize_embedding(parent, name, width):
    old = parent.get_submodule(name)
    # Learned positions of OPT are a subclass that shifts indices: it stays what it is, with a narrower table.
    old.weight = nn.Parameter(old.weight.new_empty(old.num_embeddings, width))
    old.embedding_dim = width


def _resize_norm(parent, name, width):
    old = parent.get_submodule(name)
    like = next(old.parameters(), None)
    placement = {} if like is None else {"device": like.device, "dtype": like.dtype}
    # With the stream scaled by sqrt(width / D), the stock norm over `width` dimensions divides exactly as the dense
    # one did, eps included. Gains and biases live in the readers.
    _replace(parent, name, nn.RMSNorm(width, eps=_norm_eps(old), **placement))


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
        final_norm = getattr(body, family.final_norm)

        for name in family.embeddings:
            _resize_embedding(body, name, widths[0])
        site = 0
        for layer in layers:
            layer.__class__ = globals()["Sliced" + type(layer).__name__]
            layer._blocks = family.blocks(config)
            for block in layer._blocks:
                width_in, width_out = widths[site], widths[site + 1]
                for norm, readers in block.reads:
                    bias = _has_bias(getattr(layer, norm))
                    for reader in readers:
                        _resize(layer, reader, in_features=width_in, bias=bias)
                    _resize_norm(layer, norm, width_in)
                for writer in block.writers:
                    _resize(layer, writer, out_features=width_out)
                placement = {"device": final_norm.weight.device, "dtype": final_norm.weight.dtype}
                setattr(layer, block.shortcut, nn.Linear(width_in, width_out, bias=False, **placement))
                site += 1
        bias = _has_bias(final_norm)
        _resize_norm(body, family.final_norm, widths[-1])
        if hasattr(self, family.head):
            _resize(self, family.head, in_features=widths[-1], bias=bias)
        for module in self.modules():
            if getattr(module, "_no_split_modules", None):
                module._no_split_modules = [type(layers[0]).__name__]


def _sliced_layer_class(family: Family, base: type) -> type:
    names = tuple(inspect.signature(base.forward).parameters)[2:]
    namespace = {"__module__": __name__, "_family": family, "_argument_names": names}
    return type(f"Sliced{base.__name__}", (SlicedLayerMixin, base), namespace)


def _sliced_model_class(config_class: type, base: type) -> type:
    namespace = {
        "__module__": __name__,
        "__doc__": f"Sliced {base.__name__}, see [`SlicedModelMixin`].",
        "config_class": config_class,
    }
    return type(f"Sliced{base.__name__}", (SlicedModelMixin, base), namespace)


def _register(model_type: str, config_class: type):
    """Defines a family's classes in this module, so that they can be pickled, and tells the Auto classes."""
    dense_config_class = config_class.__mro__[2]
    for mapping, auto_class in ((MODEL_MAPPING, AutoModel), (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM)):
        base = mapping[dense_config_class]
        sliced = _sliced_model_class(config_class, base)
        globals()[sliced.__name__] = sliced
        auto_class.register(config_class, sliced, exist_ok=True)
    (layer_name,) = base._no_split_modules
    layer = _sliced_layer_class(FAMILIES[model_type], getattr(sys.modules[base.__module__], layer_name))
    globals()[layer.__name__] = layer


for _model_type, _config_class in SLICED_CONFIGS.items():
    _register(_model_type, _config_class)
