"""
`rotation="per_block"`: every site has axes of its own, and a shortcut around each block leads from one to the next
(SliceGPT, section 3.3, equation 8).

The paper takes the second moment from what the sliced network puts out, as it is: [`PaperAxes`]. Where weights are
fitted or directions weighted, it is that of the dense stream, every token at length one, as norms see it:
[`DenseAxes`].
"""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch.nn.functional import pad

from ...linalg.axes import principal_axes, weighted_axes
from ...linalg.moments import add_second_moment_, root_mean_square
from ...modeling.contexts import padded, placed
from ..parts import Axes, Fit, Metric, timed
from ..state import Basis
from ..statistics import new_moment, sum_moments
from ..streams import SlicedStream
from ..writing import set_writer, writer_map


def per_block_axes(run, metric: Metric, fit: Fit) -> Axes:
    """Chooses the paper's axes for the paper's method, and the dense stream's for all that goes beyond it."""
    beyond = run.config.refit or run.config.metric != "none"
    return (DenseAxes if beyond else PaperAxes)(run, metric, fit)


class DenseAxes(Axes):
    """Principal axes of the dense stream at every site, weighted by the metric."""

    def __init__(self, run, metric, fit):
        super().__init__(run, metric, fit)
        # A fit without a metric follows the dense stream, of all tokens. Otherwise moments are measured before.
        self.needs_dense_stream = fit.needs_dense_stream and not metric.needs
        self.needs = frozenset() if self.needs_dense_stream else frozenset({"moments"})

    def find(self, site, here, x, z) -> Basis:
        run = self.run
        moment = run.state.statistics.moments[site].to(run.device) if self.needs else self._second_moment(site, x)
        return self._find(site, moment)

    @timed("second moments")
    def _second_moment(self, site, x):
        run, moment = self.run, new_moment(self.run)
        for batch, value in zip(run.batches, x.values, strict=True):
            tokens = batch.tokens(value.to(run.device))
            add_second_moment_(moment, tokens, batch.place.weight / root_mean_square(tokens))
        sum_moments(run, [moment], site)
        return moment

    @timed("axes")
    def _find(self, site, moment):
        run, metric = self.run, self.metric.at(site)
        axes = run.agreed(run.orient(weighted_axes(moment, metric)[:, : run.plan.widths[site]]))
        self.record_energy(axes, moment)
        return self.basis(axes, metric)


class WideStream(SlicedStream):
    """
    The sliced stream, which each block leaves in all D dimensions, so that the next axes can be found there.

    It is written along the frame of the site before, whose first k axes are those of the stream: the residual
    connection costs one addition. In the original basis it would cost a product with a k x D matrix for each token.
    """

    def start(self, x, basis) -> None:
        self.run.state.z, self.run.state.x = x.values, []
        self._project(basis.write)

    def enter(self, block, here) -> None:
        run, width = self.run, here.width
        like = torch.empty(0, dtype=run.dtype, device=run.device)
        # Only the next forward uses these writers, so they need no float64.
        frame = here.frame.to(torch.promote_types(run.dtype, torch.float32))
        padding = nullcontext()
        if block.keeps_width:  # Experts read as many dimensions as they write, so zeros follow the stream.
            deleted = run.plan.hidden_size - width
            padding = padded(block.sliced.entrances, deleted)
            for reader in block.sliced.readers().values():
                reader.set(pad(reader.weight, (0, deleted)), like=reader.weight)
        with run.phase("compose"):
            matrix = writer_map(run, replace(here, metric_dual=frame))
            for source, target in block.writers():
                set_writer(target, source, matrix, like)
        with run.phase("forward"), placed(block.sliced.layer, run.device, run.dtype), padding:
            for position, (batch, value) in enumerate(zip(run.batches, self.values, strict=True)):
                stream = value.to(run.device)
                output = block.output(stream, batch)
                output[..., :width] += stream
                self.values[position] = run.keep(batch.joined(block.site + 1, output, matrix))
        if block.keeps_width:
            for reader in block.sliced.readers().values():
                reader.set(reader.weight[..., :width], like=reader.weight)

    def leave(self, block, here, there, shortcut) -> None:
        # The stream is written along the frame: its first k coordinates turn by the shortcut, the others likewise.
        deleted = here.frame[:, here.width :].T @ there.write / here.scale
        self._project(torch.cat([shortcut, deleted]))

    @timed("forward")
    def _project(self, matrix):
        run, matrix = self.run, matrix.to(self.run.dtype)
        for position, value in enumerate(self.values):
            self.values[position] = run.keep(value.to(run.device) @ matrix)


class PaperAxes(Axes):
    """
    Principal axes of what the sliced network puts out.

    A block leaves the stream along all D axes of the site before it, its frame F: see [`WideStream`]. Seen from there,
    the next axes are a change C, and the next frame is F C.
    """

    sliced_stream = WideStream

    def find(self, site, here, x, z) -> Basis:
        width = self.run.plan.widths[site]
        change = self._principal_axes(self._second_moment(site, x if here is None else z), width)
        frame = change if here is None else here.frame @ change
        return Basis(frame[:, :width], frame=frame)

    @timed("second moments")
    def _second_moment(self, site, stream):
        run, moment = self.run, new_moment(self.run)
        for batch, value in zip(run.batches, stream.values, strict=True):
            add_second_moment_(moment, batch.tokens(value.to(run.device)))
        sum_moments(run, [moment], site)
        return moment

    @timed("axes")
    def _principal_axes(self, moment, width):
        axes = principal_axes(moment)[1]
        axes[:, :width] = self.run.orient(axes[:, :width])
        self.record_energy(axes[:, :width], moment)
        return self.run.agreed(axes)
