"""
`rotation="shared"`: all sites share one set of axes, so that no shortcut is needed.

The axes lose least over all sites together, see [`linalg.axes.shared_axes`]. A stream in one basis throughout is that
of a model of the family's own class, only narrower.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ...linalg.axes import shared_axes
from ..parts import Axes, timed
from ..state import Basis


class SharedAxes(Axes):
    """One set of axes for all sites, from second moments of the dense model."""

    needs = frozenset({"moments"})
    decides = True

    @timed("axes")
    def decide(self) -> None:
        run = self.run
        moments = LazySequence(run.state.statistics.moments, lambda moment: moment.to(run.device))
        metrics = LazySequence(range(len(moments)), self.metric.at)
        progress, width = partial(run.progress, description="Axes"), run.plan.widths[0]
        if width == run.plan.hidden_size == run.plan.stock_size and run.config.orientation == "pca":
            run.state.axes = torch.eye(width, dtype=torch.float64, device=run.device)  # LayerNorms keep their mean.
        else:
            run.state.axes = run.agreed(run.orient(shared_axes(moments, metrics, width, progress=progress)))
        for moment in moments:
            self.record_energy(run.state.axes, moment)
        run.state.statistics.moments = []  # Those of all sites of a 70B take 86 GB, and no step needs them any more.

    @timed("axes")
    def find(self, site, here, x, z) -> Basis:
        return self.basis(self.run.state.axes, self.metric.at(site))


class LazySequence(Sequence):
    """
    A sequence whose items are made when they are asked for.

    Args:
        items (`Sequence`): what the items are made of.
        make (callable): makes one item.
    """

    def __init__(self, items: Sequence, make: Callable[[Any], Any]):
        self._items, self._make = items, make

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._make(self._items[index])
