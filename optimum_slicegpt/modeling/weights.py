"""
Weights on the residual stream, seen in one way whoever holds them: an `nn.Linear`, the transposed `Conv1D` of GPT-2, a
router, a table of embeddings, or a bare tensor of experts.
"""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class StreamWeight:
    """
    A weight whose last axis is the stream, whatever its layout in memory.

    Args:
        parent (`nn.Module`): what `name` is relative to.
        name (`str`): of a module that has a `weight`, or of a parameter: experts are matrices stacked in one.
    """

    size_names: tuple[str, ...]
    """Attributes in which layers of any kind note how wide the stream is."""
    row_names: tuple[str, ...]
    """The same of the other axis."""

    def __init__(self, parent: nn.Module, name: str):
        owner, _, child = name.rpartition(".")
        holder = parent.get_submodule(owner)
        found = getattr(holder, child)
        self.module, self.key = (found, "weight") if isinstance(found, nn.Module) else (holder, child)

    @property
    def transposed(self) -> bool:
        """Whether the stream is the last axis but one in memory."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """A view `(..., rows, width)`."""
        stored = getattr(self.module, self.key)
        return stored.mT if self.transposed else stored

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, "bias", None) if self.key == "weight" else None

    def set(self, weight: Tensor, bias: Tensor | None = None, *, like: Tensor) -> None:
        """
        Gives the weight `(..., rows, width)` and, unless `None`, the bias. Layers learn of their new size.

        Args:
            weight (`torch.Tensor` of shape `(..., rows, width)`): in any layout; what is stored is contiguous.
            bias (`torch.Tensor`, *optional*): as long as the layer's output is wide.
            like (`torch.Tensor`): has the dtype and the device that both are to have.
        """
        stored = (weight.mT if self.transposed else weight).contiguous()
        setattr(self.module, self.key, nn.Parameter(stored.to(like.device, like.dtype)))
        if bias is not None:
            self.module.bias = nn.Parameter(bias.to(like.device, like.dtype))
        for names, size in ((self.size_names, weight.shape[-1]), (self.row_names, weight.shape[-2])):
            for name in names:
                if hasattr(self.module, name):
                    setattr(self.module, name, size)

    def _resize(self, rows, width, bias_size):
        old = self.weight
        bias = None if bias_size is None else old.new_empty(bias_size)
        self.set(old.new_empty(*old.shape[:-2], rows, width), bias, like=old)
        self.module._is_hf_initialized = False  # a mark of transformers, for whom the layer is as good as new


class Reader(StreamWeight):
    """A weight that the stream is multiplied by: `(..., out, width)`."""

    size_names = ("in_features", "nx", "hidden_dim")
    row_names = ("out_features", "nf")

    @property
    def transposed(self) -> bool:
        return isinstance(self.module, Conv1D)

    def resize(self, width: int, new_bias: bool = False, rows: int | None = None) -> None:
        """Makes room for another width or number of rows, and perhaps for a first bias. Values are to be filled in."""
        before, bias = self.weight.shape[-2], self.bias
        rows = rows or before
        self._resize(rows, width, rows if (new_bias if bias is None else rows != before) else None)


class Writer(StreamWeight):
    """A weight whose output is added to the stream: `(..., in, width)`. A table of embeddings is one."""

    size_names = ("out_features", "nf", "hidden_dim", "embedding_dim")
    row_names = ("in_features", "nx")

    @property
    def transposed(self) -> bool:
        return not isinstance(self.module, Conv1D | nn.Embedding)

    def resize(self, width: int, rows: int | None = None) -> None:
        """Makes room for another width or number of rows. The values are to be filled in."""
        self._resize(rows or self.weight.shape[-2], width, None if self.bias is None else width)
