"""The sliced stream where weights are fitted to it: what each block's writers read is kept until they are."""

from contextlib import nullcontext

import torch
from torch import Tensor

from ...modeling.contexts import inputs_recorded, placed
from ..parts import timed
from ..streams import SlicedStream
from ..writing import writer_map


class FittedStream(SlicedStream):
    """
    The sliced stream, with the inputs of each block's writers.

    Attributes:
        inputs (`list`): for each batch, what the writers of the block read `(B, T, inputs)`, side by side, followed by
            a one if they have a bias.
    """

    @timed("forward")
    def start(self, x, basis) -> None:
        run = self.run
        matrix = writer_map(run, basis).to(run.dtype)
        run.state.z = [run.keep(value.to(run.device) @ matrix) for value in x.values]

    def enter(self, block, here) -> None:
        self.inputs = [] if block.keeps_width else self._inputs_of(block)

    @timed("forward")
    def _inputs_of(self, block):
        run, sliced = self.run, block.sliced
        writers = sliced.writers()
        modules, factor = [writer.module for writer in writers.values()], block.sliced.multiplier
        ones = any(writer.bias is not None for writer in writers.values())
        inputs, silent = [], [*modules, *filter(None, [sliced.post_norm])]
        with placed(sliced.layer, run.device, run.dtype), inputs_recorded(silent) as seen:
            for batch, value in zip(run.batches, self.values, strict=True):
                stream = value.to(run.device)
                block.output(stream, batch)
                parts = [seen[module] for module in modules] + [torch.ones_like(stream[..., :1])] * ones
                if factor is not None:
                    parts = [part * factor for part in parts]
                inputs.append(run.keep(torch.cat(parts, -1) if len(parts) > 1 else parts[0]))
        return inputs

    @timed("forward")
    def leave(self, block, here, there, shortcut, fitted) -> None:
        run = self.run
        if fitted is None:
            with placed(block.sliced.layer, run.device, run.dtype):
                for position, (batch, value) in enumerate(zip(run.batches, self.values, strict=True)):
                    stream = value.to(run.device)
                    self.values[position] = run.keep(block.output(stream, batch) + residual(stream, shortcut))
            return
        weights, remaining = fitted
        matrix, norm = weights.to(run.dtype), block.sliced.post_norm
        with nullcontext() if norm is None else placed(norm, run.device, run.dtype):
            for position, (value, given) in enumerate(zip(self.values, self.inputs, strict=True)):
                given = given.to(run.device)
                added = (given if remaining is None else given[..., remaining]) @ matrix
                added = (added if norm is None else norm(added)) + residual(value.to(run.device), shortcut)
                self.values[position] = run.keep(added)
        self.inputs = []


def residual(stream: Tensor, shortcut: Tensor | None) -> Tensor:
    """Returns what the residual connection makes of a stream: `stream @ shortcut`, or the stream itself."""
    return stream if shortcut is None else stream @ shortcut.to(stream)
