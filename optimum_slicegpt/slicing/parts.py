"""
The four parts of a method and their contracts: metric, axes, neurons, fit. `methods/` has a file for each choice.

A part sees tensors (`run.batches`, both streams), what is known (`run.dense`, `run.sliced`, `run.plan`, `run.config`,
`run.state`) and the run's services (`run.sum_`, `run.agreed`, `run.keep`). Storage, other processes and finished steps
are the run's business; [`timed`] says to which phase the time of a method counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING

from torch import Tensor

from .state import Basis


if TYPE_CHECKING:
    from .pairs import BlockPair, NormPair
    from .run import Run
    from .streams import DenseStream, SlicedStream


def timed(phase: str) -> Callable:
    """Returns a decorator that adds the time of a method to a phase of `self.run`."""

    def decorate(method):
        @wraps(method)
        def run_timed(self, *args, **kwargs):
            with self.run.phase(phase):
                return method(self, *args, **kwargs)

        return run_timed

    return decorate


class Part:
    """
    A part of a method.

    Args:
        run ([`run.Run`]): the run that the choice is for.
    """

    needs: frozenset[str] = frozenset()
    """Statistics of the dense model that are measured first: `"moments"`, `"gradients"`, `"costs"`."""
    decides: bool = False
    """Whether [`Part.decide`] is a step of the run."""
    needs_dense_stream: bool = False
    """Whether the part depends on the dense stream at sites after the first."""
    sliced_stream: type[SlicedStream] | None = None
    """Class that follows the sliced stream, if the part depends on it."""

    def __init__(self, run: Run):
        self.run = run

    def decide(self) -> None:
        """Decides once for all layers, when `run.state.statistics` has what the part needs."""


class Metric(Part):
    """A weighting of deviations of the stream."""

    def at(self, site: int) -> Tensor | None:
        """
        Returns the metric M of a site: a deviation d of a token costs `dᵀ M d`.

        Returns:
            `torch.Tensor` of shape `(D, D)`, float64, positive definite; `None` where all directions cost the same.
        """
        return None


class Neurons(Part):
    """A distribution of neurons over the layers: an MLP keeps `run.plan.neurons` on average."""

    def decide(self) -> None:
        """Sets the numbers, with `run.set_neurons`."""


class Axes(Part):
    """
    A choice of the directions of the stream that each site keeps.

    Args:
        run ([`run.Run`]): the run that the choice is for.
        metric ([`Metric`]), fit ([`Fit`]): the choices that go with it.
    """

    def __init__(self, run: Run, metric: Metric, fit: Fit):
        super().__init__(run)
        self.metric = metric

    def find(self, site: int, here: Basis | None, x: DenseStream, z: SlicedStream) -> Basis:
        """
        Finds the basis of a site. The energy that it keeps is recorded here or by [`Part.decide`], see
        [`Axes.record_energy`]. The sites come in order. Both streams are at that site, if a part depends on them.

        Args:
            site (`int`): from 0, before the first layer, to the one before the head.
            here ([`Basis`], *optional*): of the site before; `None` at the first.
            x ([`streams.DenseStream`]): the dense stream.
            z ([`streams.SlicedStream`]): the sliced one, which has entered the block before the site.
        """
        raise NotImplementedError

    def basis(self, axes: Tensor, metric: Tensor | None = None) -> Basis:
        """
        Returns the basis along some axes.

        Args:
            axes (`torch.Tensor` of shape `(D, k)`, float64): orthonormal, the same in all processes.
            metric (`torch.Tensor` of shape `(D, D)`, float64, *optional*): of the site.
        """
        basis = Basis.from_axes(axes, metric)
        return basis if metric is None else replace(basis, metric_dual=self.run.agreed(basis.metric_dual))

    def record_energy(self, axes: Tensor, moment: Tensor) -> None:
        """Records the share of a site's energy that its axes keep, once for every site, from its second moment."""
        self.run.state.energy_kept.append(((axes.T @ moment @ axes).trace() / moment.trace()).item())


class Fit(Part):
    """A choice of the values of the remaining weights."""

    def readers(self, norm: NormPair, here: Basis, x: DenseStream, z: SlicedStream) -> Tensor:
        """
        Returns the matrix `(D, k)`, float64, by which the readers of a norm are multiplied once they hold its gain.

        Args:
            norm ([`NormPair`]): in front of the readers.
            here ([`Basis`]): of the site that they read.
            x ([`streams.DenseStream`]), z ([`streams.SlicedStream`]): both streams at that site.
        """
        return here.read

    def final_gain(self, norm: NormPair, here: Basis, prior: Tensor, x: DenseStream, z: SlicedStream) -> Tensor:
        """
        Returns the gains `(k,)`, float64, of the final norm before a head that shares the embedding's narrow matrix.

        Args:
            norm ([`NormPair`]): the final norm, and the head.
            here ([`Basis`]): of the last site.
            prior (`torch.Tensor` of shape `(k,)`, float64): what the basis makes of the dense gains.
            x ([`streams.DenseStream`]), z ([`streams.SlicedStream`]): both streams at that site.
        """
        return prior

    def writers(
        self, block: BlockPair, there: Basis, shortcut: Tensor | None, x: DenseStream, z: SlicedStream
    ) -> None:
        """
        Fits the writers of a block, which hold what the basis makes of the dense ones, and may delete neurons.

        Args:
            block ([`BlockPair`]): the block whose writers are fitted.
            there ([`Basis`]): of the site after it.
            shortcut (`torch.Tensor` of shape `(k, k')`, *optional*): on the residual connection; `None` for none.
            x ([`streams.DenseStream`]): the dense stream after the block.
            z ([`streams.SlicedStream`]): the sliced one, which has entered the block.
        """
