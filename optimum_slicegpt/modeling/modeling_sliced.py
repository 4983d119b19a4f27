"""
Sliced models: each family's own classes, with a width of its own at every site of the residual stream.

No decoder forward is copied. A sliced model *is* the family's model: its constructor builds the dense model without
values, then resizes every weight on the stream, replaces the norms, and gives each decoder layer the forward of
[`layer_sliced.SlicedLayerMixin`].
"""

import inspect
import sys
from functools import cache, partial

from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from .configuration_sliced import SLICED_CONFIG_NAMES, sliced_config_class
from .families import family_of
from .family import Block
from .heads import define_head
from .layer_sliced import SlicedLayerMixin
from .weights import Reader, Writer, body_of, eps_of, has_bias, resize_mlp


class ProjectedNorm(nn.RMSNorm):
    """The final norm of a model whose head keeps its width, with a projection back to D dimensions."""

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
    placement = {"eps": eps_of(old, family), "device": like.device, "dtype": like.dtype}
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
        body = body_of(self, family)
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
            layer.__class__ = _sliced_layer_class(type(layer))
            layer.register_module("embedding_projection", None)
            layer.look_up(family)
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
                module._no_split_modules = sorted({type(layer).__name__ for layer in layers})

    @staticmethod
    def _slice_block(layer: nn.Module, block: Block, width_in: int, width_out: int, like: Tensor):
        """Resizes a block's readers and norms to the width before it, its writers to the width after it."""
        for norm, readers in block.reads:
            for reader in readers:
                Reader(layer, reader).resize(width_in, norm is not None and has_bias(getattr(layer, norm)))
            if norm is not None:
                _resize_norm(layer, norm, width_in, layer._family, like)
        for writer in block.writers:
            Writer(layer, writer).resize(width_out)
        if block.post_norm is not None:  # It keeps its gains, in the family's own form.
            norm = getattr(layer, block.post_norm)
            norm.weight = nn.Parameter(norm.weight.new_empty(width_out))

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

    def initialize_weights(self):
        with self.config.dense_sizes():  # from which some families derive multipliers that no checkpoint holds
            super().initialize_weights()

    @classmethod
    def is_custom_code(cls):
        return False  # What initialises weights is the family's: transformers may trust it as it trusts its own code.

    # transformers reads the source of a class's module to find out what its layers support. That source is the
    # family's, because the layers are.

    @classmethod
    def _can_set_attn_implementation(cls):
        return cls._dense_class._can_set_attn_implementation()

    @classmethod
    def _can_set_experts_implementation(cls):
        return cls._dense_class._can_set_experts_implementation()


AUTO_CLASSES = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


@cache
def _sliced_layer_class(base: type) -> type:
    """Derives a sliced class from a family's decoder layer."""
    names = tuple(inspect.signature(base.forward).parameters)[2:]
    namespace = {"__module__": __name__, "_argument_names": names}
    return _defined(type(f"Sliced{base.__name__}", (SlicedLayerMixin, base), namespace))


def _sliced_model_class(name: str, config_class: type, base: type, auto_map: dict[str, str]) -> type:
    """Derives a sliced class from a family's model."""
    namespace = {
        "__module__": __name__,
        "__doc__": f"Sliced {base.__name__}, see [`SlicedModelMixin`].",
        "config_class": config_class,
        "_dense_class": base,
        "_auto_map": auto_map,
    }
    conversions = get_checkpoint_conversion_mapping(base.__name__)
    if conversions is not None:  # of experts, which this class holds as a model around it does
        register_checkpoint_conversion_mapping(name, conversions, overwrite=True)
    return _defined(type(name, (SlicedModelMixin, base), namespace))


def _defined(derived: type) -> type:
    """Defines a class in this module, where pickle and transformers find it by its name."""
    globals()[derived.__name__] = derived
    return derived


@cache
def define(model_type: str) -> type:
    """
    Derives a family's configuration and models, and registers them with the Auto classes.

    Returns:
        `type`: the class of the sliced configuration.
    """
    config_class, auto_map = sliced_config_class(model_type), {}
    dense_config_class = config_class.__mro__[2]
    define_head(dense_config_class)
    for auto_class in AUTO_CLASSES:
        if dense_config_class not in auto_class._model_mapping:
            continue
        base = auto_class._model_mapping[dense_config_class]
        name = f"Sliced{base.__name__}"
        if base.config_class is not dense_config_class:  # Another family's model, whose sliced class has this name.
            name = f"{_stem(config_class.__name__)}As{base.__name__}"
        sliced = _sliced_model_class(name, config_class, base, auto_map)
        auto_map[auto_class.__name__] = f"{__name__.rpartition('.')[2]}.{sliced.__name__}"
        auto_class.register(config_class, sliced, exist_ok=True)
        sliced.register_for_auto_class(auto_class)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    return config_class


class Undefined(type):
    """
    The class of what stands for a sliced configuration class until it is needed, which `define` returns: defining all
    families' classes takes seconds, and an error in the code of one family must not keep the others from being used.
    """

    def __call__(cls, *args, **kwargs):
        return cls.define()(*args, **kwargs)

    def __getattr__(cls, name: str):
        return getattr(cls.define(), name)


def _stem(config_name: str) -> str:
    """Returns what the names of a family's classes begin with, by that of its configuration."""
    return config_name.removesuffix("Config").removesuffix("Text")


def __getattr__(name: str):
    stems = {_stem(config_name): model_type for config_name, model_type in SLICED_CONFIG_NAMES.items()}
    for stem in sorted(filter(name.startswith, stems), key=len, reverse=True):
        config_class = define(stems[stem])
        if name in globals():
            return globals()[name]
        layer = getattr(sys.modules[_dense_module(config_class)], name.removeprefix("Sliced"), None)
        if layer is not None:
            return _sliced_layer_class(layer)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _dense_module(config_class: type) -> str:
    """Returns the name of the module of transformers that a family's layers are in."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[config_class]._dense_class.__module__


for _config_name, _model_type in SLICED_CONFIG_NAMES.items():
    _define = staticmethod(partial(define, _model_type))
    AutoConfig.register(f"sliced_{_model_type}", Undefined(_config_name, (), {"define": _define}), exist_ok=True)
