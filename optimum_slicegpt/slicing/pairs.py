"""The dense and the sliced model side by side: a layer, a block, a norm of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn


if TYPE_CHECKING:
    from ..modeling.decoder import Decoder, DecoderBlock
    from ..modeling.weights import Reader, Writer
    from .streams import Batch


@dataclass(frozen=True)
class NormPair:
    """
    A norm on the stream.

    Args:
        site (`int`): where it reads the stream.
        dense (`nn.Module`, *optional*): of the dense model; `None` where readers read the stream itself.
        sliced (`nn.Module`, *optional*): the RMSNorm that it becomes.
        readers (`list[tuple[Reader, Reader]]`): the weights that read its output, dense and sliced.
    """

    site: int
    dense: nn.Module | None
    sliced: nn.Module | None
    readers: list[tuple[Reader, Reader]]


@dataclass(frozen=True)
class BlockPair:
    """
    A block, which reads the stream at a site and adds to it before the next.

    Args:
        dense ([`DecoderBlock`]): of the dense model.
        sliced ([`DecoderBlock`]): of the sliced one.
    """

    dense: DecoderBlock
    sliced: DecoderBlock

    @property
    def site(self) -> int:
        return self.dense.site

    @property
    def index(self) -> int:
        """Number of the layer."""
        return self.dense.index

    @property
    def keeps_width(self) -> bool:
        return self.dense.keeps_width

    def output(self, stream: Tensor, batch: Batch) -> Tensor:
        """Computes what the sliced block adds to the stream `(B, T, k)`, as wide as its writers are."""
        return self.sliced.layer.block_output(self.dense.kind, stream, batch.layer_kwargs[self.index])

    def norms(self) -> Iterator[NormPair]:
        for (_, dense, readers), (_, sliced, targets) in zip(self.dense.norms(), self.sliced.norms(), strict=True):
            yield NormPair(self.site, dense, sliced, list(zip(readers.values(), targets.values(), strict=True)))

    def writers(self) -> list[tuple[Writer, Writer]]:
        """Returns pairs of the dense and the sliced writer."""
        return list(zip(self.dense.writers().values(), self.sliced.writers().values(), strict=True))


def pair_blocks(dense: Decoder, sliced: Decoder, index: int) -> list[BlockPair]:
    """Returns the blocks of a layer, in the order in which the stream meets them."""
    pairs = zip(dense.blocks_of(index), sliced.blocks_of(index), strict=True)
    return [BlockPair(block, target) for block, target in pairs]
