"""The sliced stream z where weights are fitted: it leaves a block by what was fitted, not by what the basis gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...modeling.contexts import inputs_recorded, placed
from ..parts import timed
from ..streams import SlicedStream


if TYPE_CHECKING:
    from ..pairs import BlockPair
    from ..streams import Batch


class FittedStream(SlicedStream):
    """
    The sliced stream, which a block leaves by the weights that were fitted.

    What the writers of attention read is computed once, kept, and written from once they are fitted. An MLP's writer
    reads less in the end, and more than the stream is wide, so the MLP computes it again.
    """

    def __init__(self, run):
        super().__init__(run)
        self._given = []

    @timed("forward")
    def start(self, x, basis) -> None:
        run = self.run
        matrix = basis.write.to(run.dtype)
        run.state.z = [run.keep(value.to(run.device) @ matrix) for value in x.values]

    @contextmanager
    def reading(self, block: BlockPair) -> Iterator[Callable[[Batch, Tensor], Tensor]]:
        """
        Yields a function that takes the stream `(B, T, k)` of a batch into a block whose readers are written. It
        returns what the writers read `(B, T, inputs)`, side by side, followed by a one if they have a bias. Batches
        are taken in their order.
        """
        run, sliced = self.run, block.sliced
        if self._given:
            given = iter(self._given)
            yield lambda batch, stream: next(given).to(run.device)
            return
        writers = sliced.writers()
        factors = {writer.module: factor for writer, factor in zip(writers.values(), sliced.multipliers, strict=True)}
        ones = any(writer.bias is not None for writer in writers.values())
        silent = [*factors, *filter(None, [sliced.post_norm])]
        keeps = not block.dense.has_dense_mlp

        def inputs_of(batch, stream):
            block.output(stream, batch)
            parts = [seen[module] if factor == 1 else seen[module] * factor for module, factor in factors.items()]
            parts += [torch.ones_like(stream[..., :1])] * ones
            given = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
            if keeps:
                self._given.append(run.keep(given))
            return given

        with placed(sliced.layer, run.device, run.dtype), inputs_recorded(silent) as seen:
            yield inputs_of

    @timed("forward")
    def leave(self, block, here, there, shortcut) -> None:
        run, (given, self._given) = self.run, (self._given, [])
        with placed(block.sliced.layer, run.device, run.dtype):
            for position, (batch, value) in enumerate(zip(run.batches, self.values, strict=True)):
                stream = value.to(run.device)
                output = _written(block, given[position].to(run.device)) if given else block.output(stream, batch)
                stream = output + residual(stream, shortcut)
                self.values[position] = run.keep(batch.joined(block.site + 1, stream, there.write))


def _written(block: BlockPair, given: Tensor) -> Tensor:
    """Computes what a block adds to the stream `(B, T, k')`, from what [`FittedStream.reading`] returns."""
    writers, post_norm = block.sliced.writers().values(), block.sliced.post_norm
    pairs = zip(writers, block.sliced.multipliers, strict=True)
    biases = [writer.bias * factor for writer, factor in pairs if writer.bias is not None]
    rows = [writer.weight for writer in writers] + ([sum(biases)[None]] if biases else [])
    output = given @ torch.cat(rows)
    return output if post_norm is None else post_norm(output)


def residual(stream: Tensor, shortcut: Tensor | None) -> Tensor:
    """Returns what the residual connection makes of a stream: `stream @ shortcut`, or the stream itself."""
    return stream if shortcut is None else stream @ shortcut.to(stream)
