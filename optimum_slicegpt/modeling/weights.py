"""
Weights on the residual stream, with one layout for all modules that hold them: an `nn.Linear`, the transposed `Conv1D`
of GPT-2, a router, a table of embeddings, or a bare tensor of experts.
"""

from __future__ import annotations

from itertools import product

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .family import Family, Transposed, has


class StreamWeight:
    """
    A weight whose last axis is the stream, whatever its layout in memory.

    Args:
        parent (`nn.Module`): the module that `name` is relative to.
        name (`str`): of a module that has a `weight`, or of a parameter, which may stack the matrices of experts.
    """

    width_attributes: tuple[str, ...]
    """Attributes in which modules of any kind hold the size of the last axis, the width of the stream."""
    row_attributes: tuple[str, ...]
    """Attributes in which modules of any kind hold the size of the last axis but one, the number of rows."""

    def __init__(self, parent: nn.Module, name: str):
        self._flipped = isinstance(name, Transposed)
        owner, _, child = name.rpartition(".")
        holder = parent.get_submodule(owner)
        found = getattr(holder, child)
        self.module, self.key = (found, "weight") if isinstance(found, nn.Module) else (holder, child)
        self._holders = [self.module]
        if not isinstance(found, nn.Module):  # Some mixtures hold the width of their stacked experts, too.
            self._holders.append(parent.get_submodule(owner.rpartition(".")[0]))

    @property
    def transposed(self) -> bool:
        """Whether the stream is the last axis but one of the tensor in memory."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight as a view `(..., rows, width)`."""
        stored = getattr(self.module, self.key)
        return stored.mT if self.transposed else stored

    @property
    def bias(self) -> Tensor | None:
        """The bias beside the weight, or `None`."""
        return getattr(self.module, "bias", None) if self.key == "weight" else None

    def set(self, weight: Tensor, bias: Tensor | None = None, *, like: Tensor) -> None:
        """
        Stores another weight and, unless it is `None`, another bias, and updates the sizes that the module holds.

        Args:
            weight (`torch.Tensor` of shape `(..., rows, width)`): in any layout; it is stored contiguous.
            bias (`torch.Tensor`, *optional*): as long as the module's output is wide.
            like (`torch.Tensor`): a tensor of the dtype and on the device for both.
        """
        stored = (weight.mT if self.transposed else weight).contiguous()
        setattr(self.module, self.key, nn.Parameter(stored.to(like.dtype).to(like.device)))  # in fewer bytes
        if bias is not None:
            self.module.bias = nn.Parameter(bias.to(like.dtype).to(like.device))
        for names, size in ((self.width_attributes, weight.shape[-1]), (self.row_attributes, weight.shape[-2])):
            for module, name in product(self._holders, names):
                if hasattr(module, name):
                    setattr(module, name, size)

    def _resize(self, rows, width, bias_size):
        old = self.weight  # Not every class initialises its routers, which are zeros until they are loaded.
        bias = None if bias_size is None else old.new_zeros(bias_size)
        self.set(old.new_zeros(*old.shape[:-2], rows, width), bias, like=old)
        self.module._is_hf_initialized = False  # transformers then initialises the module as it does any other.


class Reader(StreamWeight):
    """A weight `(..., out, width)` that multiplies the stream."""

    width_attributes = ("in_features", "nx", "hidden_dim", "hidden_size")
    row_attributes = ("out_features", "nf")

    @property
    def transposed(self) -> bool:
        return isinstance(self.module, Conv1D) != self._flipped

    def resize(self, width: int, new_bias: bool = False, rows: int | None = None) -> None:
        """
        Allocates a weight of another width or number of rows, without values.

        Args:
            width (`int`): of the stream.
            new_bias (`bool`, defaults to `False`): whether a module without a bias gets one.
            rows (`int`, *optional*): number of outputs. As many as before by default.
        """
        before, bias = self.weight.shape[-2], self.bias
        rows = rows or before
        self._resize(rows, width, rows if (new_bias if bias is None else rows != before) else None)


class Writer(StreamWeight):
    """A weight `(..., in, width)` whose output is added to the stream. Tables of embeddings are writers, too."""

    width_attributes = ("out_features", "nf", "hidden_dim", "hidden_size", "input_size", "embedding_dim")
    row_attributes = ("in_features", "nx")

    @property
    def transposed(self) -> bool:
        return isinstance(self.module, Conv1D | nn.Embedding) == self._flipped

    def resize(self, width: int, rows: int | None = None) -> None:
        """
        Allocates a weight of another width or number of rows, without values.

        Args:
            width (`int`): of the stream.
            rows (`int`, *optional*): number of inputs. As many as before by default.
        """
        self._resize(rows or self.weight.shape[-2], width, None if self.bias is None else width)


def body_of(model: nn.Module, family: Family) -> nn.Module:
    """Returns the module that holds tables, layers and final norm. The prefix of some base models names nothing."""
    base = model.base_model
    return base.get_submodule(family.body) if has(base, family.body) else base


def whole_of(model: nn.Module) -> nn.Module | None:
    """Returns the model of images and text that a causal language model is the text tower of, if it is one."""
    return vars(model).get("_whole")


def deep_values(tower: nn.Module) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Returns weights and biases, by name, for what writes to the stream of a sliced text tower from around it."""
    return vars(tower).setdefault("_deep_values", {})


def is_among(parameter: str, weights: set[str]) -> bool:
    """Tells whether a parameter is one of some weights, or the bias beside one. Routers may have another, too."""
    owner, _, key = parameter.rpartition(".")
    return parameter in weights or (owner in weights and key in ("weight", "bias"))


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that checkpoints hold, by name: routers may have a bias that is none of the parameters."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def has_bias(norm: nn.Module | None) -> bool:
    return getattr(norm, "bias", None) is not None


def eps_of(norm: nn.Module, family: Family) -> float:
    """Returns the eps that a norm adds to the mean square."""
    return family.norm_eps or getattr(norm, "variance_epsilon", None) or norm.eps


def resize_mlp(layer: nn.Module, family: Family, neurons: int) -> None:
    """
    Allocates the weights of an MLP for another number of neurons, without values.

    Args:
        layer (`nn.Module`): the decoder layer.
        family ([`family.Family`]): its row in the table of families.
        neurons (`int`): number of neurons.
    """
    writer = Writer(layer, family.mlp_writer)
    before = writer.weight.shape[-2]
    writer.resize(writer.weight.shape[-1], rows=neurons)
    for name in family.mlp_readers:
        reader = Reader(layer, name)
        rows, width = reader.weight.shape
        # A reader that fuses gate and up projection has two rows for each neuron.
        reader.resize(width, rows=rows // before * neurons)
