"""
The stock form of a sliced model: a model of a class that transformers has, which computes the same function.

A sliced model whose sites share one basis has no shortcuts. It differs from a stock model only in its norms, which are
RMSNorms with gain 1. Families with RMSNorms have these norms already. In families with LayerNorms, the stream gets one
more dimension and moves into the subspace whose coordinates add up to zero. There LayerNorm has no mean to subtract,
and is an RMSNorm. A stream that keeps all dimensions, unturned, is in that subspace already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.initialization import no_init_weights

from ..linalg.composition import compose
from ..modeling.stock import stock_config
from ..modeling.weights import Reader, Writer, is_among, persistent_buffers


if TYPE_CHECKING:
    from ..modeling.decoder import Decoder


MOST_DOUBLINGS = 4
"""A gain is at most two to this power, and at least its inverse, so that bfloat16 holds it less one, as Gemma does."""


class StockForm:
    """
    The stock model into which a sliced model turns, weight by weight.

    Args:
        sliced ([`Decoder`]): of a sliced class, without shortcuts or projections. It may have no values yet.
        hidden_size (`int`): of the stock model: the width, or one more for families with LayerNorms.

    Attributes:
        model (`PreTrainedModel`): the stock model, in evaluation mode. Its parameters are on `meta` until
            [`StockForm.settle`] finds them in the sliced model.
    """

    def __init__(self, sliced: Decoder, hidden_size: int):
        width = sliced.config.widths[0]
        self._sliced, self._offset = sliced, sliced.family.gain_offset
        self._hidden_size, self._tied = hidden_size, sliced.config.tie_word_embeddings
        self._from_stream, self._to_stream = _stream_maps(width) if hidden_size > width else (None, None)
        self.model = _empty_stock(sliced, hidden_size)

    @torch.no_grad()
    def settle(self) -> None:
        """Turns all weights that the sliced model has into those of the stock model, which may be the same tensors."""
        ours, theirs = self._sliced.model, self.model
        (final, *reads), writers = self._sliced.names_on_stream()
        for name, readers in reads if self._tied else [final, *reads]:
            if not Reader(ours, readers[0]).weight.is_meta:
                self._set_readers(name, [(Reader(ours, each), Reader(theirs, each)) for each in readers])
        for name in writers:
            if not Writer(ours, name).weight.is_meta:
                self._set_writer(Writer(ours, name), Writer(theirs, name))
        for name, parameter in _parameters_off_stream(self._sliced):
            if not parameter.is_meta:
                owner, _, key = name.rpartition(".")
                setattr(theirs.get_submodule(owner), key, nn.Parameter(parameter.detach()))
        for name, buffer in persistent_buffers(ours).items():
            owner, _, key = name.rpartition(".")
            setattr(theirs.get_submodule(owner), key, buffer)
        if self._tied:
            norm, head = self._sliced.final_norm, self._sliced.head
            if not norm.weight.is_meta:
                self._set_norm(final[0], norm.weight / self._table_ratio(), getattr(norm, "bias", None))
            theirs.tie_weights()
            if head.bias is not None and not head.bias.is_meta:
                theirs.get_submodule(self._sliced.head_name).bias = nn.Parameter(head.bias.detach())

    def _set_norm(self, name: str, gain: Tensor, bias: Tensor | None) -> None:
        """Sets the gain `(hidden_size,)` of a norm and its bias, as far as it has them."""
        norm, like = self.model.get_submodule(name), self._sliced.model.get_submodule(name).weight
        for key, value in (("weight", gain - self._offset), ("bias", bias)):
            if getattr(norm, key, None) is not None:
                setattr(norm, key, nn.Parameter(value.to(like.device, like.dtype)))

    def _set_readers(self, name: str | None, pairs: list[tuple[Reader, Reader]]) -> None:
        """
        Sets a norm, if there is one, and the stock weights that read it.

        A sliced reader may hold a bias that came from its norm, and the stock reader may have none. Its bias then
        becomes one more input: along the axis of ones, which is otherwise empty, the stock reader reads a norm bias of
        ones. The other readers of that norm do not see it.

        The columns of weights differ in size, as the gains that they hold do, and formats that share a scale among
        neighbouring columns would lose the small ones. The norm's gain takes over a part of that, in powers of two, by
        which nothing is rounded.
        """
        from_stream, size = self._from_stream, self._hidden_size
        lacking = [ours.bias is not None and theirs.bias is None for ours, theirs in pairs]
        if any(lacking) and from_stream is None:
            from_stream = torch.eye(size, dtype=torch.float64) - 1 / size
        for (ours, theirs), lacks in zip(pairs, lacking, strict=True):
            weight, matrix = ours.weight, from_stream
            if lacks:
                weight = torch.cat([weight, ours.bias[:, None]], 1)
                matrix = torch.cat([matrix, torch.full_like(matrix[:1], 1 / size)])
            theirs.set(_map_stream(weight, matrix), None if lacks else ours.bias, like=ours.weight)
        if name is None:
            return
        gain = torch.ones(size, device=pairs[0][1].weight.device)
        if getattr(self.model.get_submodule(name), "weight", None) is not None:
            gain = balancing_gain([theirs.weight for _, theirs in pairs])
            for _, theirs in pairs:
                theirs.set(theirs.weight / gain.to(theirs.weight), like=theirs.weight)
        self._set_norm(name, gain, gain * any(lacking))

    def _set_writer(self, ours: Writer, theirs: Writer) -> None:
        """Sets the weights of a stock writer, whose bias is zero where the sliced one has none."""
        weight, bias = _map_stream(ours.weight, self._to_stream), ours.bias
        if bias is not None:
            bias = _map_stream(bias[None], self._to_stream)[0]
        elif theirs.bias is not None:
            bias = torch.zeros(self._hidden_size)
        if hasattr(ours.module, "embed_scale"):
            weight = weight * self._table_ratio()
        theirs.set(weight, bias, like=ours.weight)

    def _table_ratio(self) -> float:
        """Returns the ratio of the tables: Gemma multiplies what it looks up by the root of the hidden size."""
        ours, theirs = (
            getattr(model.get_submodule(self._sliced.table_names[0]), "embed_scale", None)
            for model in (self._sliced.model, self.model)
        )
        return 1.0 if ours is None else float(ours) / float(theirs)


def _empty_stock(decoder: Decoder, hidden_size: int) -> PreTrainedModel:
    """Builds the stock model, whose parameters are on `meta`; its buffers have values."""
    sliced, config = decoder.model, stock_config(decoder.family, decoder.config, hidden_size)
    config.name_or_path = sliced.config.name_or_path
    # Buffers are built where those of the sliced model are, which is on `meta` until it has adopted the dense ones.
    device = next((each.device for each in sliced.buffers() if not each.is_meta), torch.device("cpu"))
    with device, no_init_weights(), init_empty_weights(include_buffers=False):
        stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(
            config,
            dtype=sliced.dtype,
            attn_implementation=sliced.config._attn_implementation,
            experts_implementation=sliced.config._experts_implementation,
        )
    stock.tie_weights()  # Tied weights got an empty parameter each.
    stock.generation_config = deepcopy(sliced.generation_config)
    return stock.eval()


def _parameters_off_stream(sliced: Decoder) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters that neither read nor write the stream, and belong to no norm that readers read."""
    reads, writers = sliced.names_on_stream()
    stream = {*writers, *(name for norm, readers in reads for name in (norm, *readers))}
    for name, parameter in sliced.model.named_parameters():
        if not is_among(name, stream):
            yield name, parameter


def _stream_maps(width: int) -> tuple[Tensor, Tensor]:
    """
    Returns the matrices that right-multiply the weights of readers and of writers to move a stream under LayerNorms.

    With n = width + 1, the first `width` rows of the Householder reflection that swaps the axes eₙ and 1ₙ / √n map the
    stream to n coordinates that add up to zero: I - v vᵀ / (n - √n) with v = 1ₙ - √n eₙ. LayerNorm divides by n
    dimensions instead of `width`, so the stream is multiplied by √(n / width), and the same eps is exact.

    Returns:
        `tuple`: two matrices of shape `(width, width + 1)`, float64, for readers and for writers.
    """
    size = width + 1
    isometry = torch.eye(width, size, dtype=torch.float64)
    isometry[:, :width] -= 1 / (size - math.sqrt(size))
    isometry[:, width] = 1 / math.sqrt(size)
    growth = math.sqrt(size / width)
    return isometry / growth, isometry * growth


def balancing_gain(weights: list[Tensor]) -> Tensor:
    """
    Computes the gains that balance the columns of some weights, once the columns are divided by them.

    Args:
        weights (`list[torch.Tensor]` of shape `(..., rows, hidden_size)`): those that read one norm.

    Returns:
        `torch.Tensor` of shape `(hidden_size,)`: the roots of the columns' relative sizes, as powers of two.
    """
    energy = sum(weight.float().square().flatten(0, -2).sum(0) for weight in weights)
    relative = (energy / energy.mean()).clamp_min(torch.finfo(energy.dtype).tiny)
    # An exponent of a quarter of log2(energy) is half of that of the size. Larger gains would not fit 1 + weight.
    return torch.exp2((relative.log2() / 4).round().clamp(-MOST_DOUBLINGS, MOST_DOUBLINGS))


def _map_stream(weight: Tensor, matrix: Tensor | None) -> Tensor:
    """Returns `weight @ matrix`, or `weight` itself where the stream stays as it is."""
    return weight if matrix is None else compose(weight, matrix.to(weight.device), weight.dtype)
