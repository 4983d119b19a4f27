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
from ...modeling.contexts import room_on
from ..parts import Axes, timed
from ..state import Basis


class SharedAxes(Axes):
    """One set of axes for all sites, from second moments of the dense model unless all of the stream is kept."""

    decides = True

    def __init__(self, run, metric, fit):
        super().__init__(run, metric, fit)
        if not run.plan.whole:
            self.needs = frozenset({"moments"})

    @timed("axes")
    def decide(self) -> None:
        run, plan = self.run, self.run.plan
        if plan.whole:
            axes = torch.eye(plan.hidden_size, dtype=torch.float64, device=run.device)
            run.state.energy_kept = [1.0] * len(plan.widths)
        else:
            axes = self._search()
        if not plan.whole or plan.stock_size != plan.hidden_size or run.config.orientation == "random":
            axes = run.agreed(run.orient(axes))
        run.state.axes = axes
        run.state.statistics.moments = []  # Those of all sites of a 70B take 86 GB, and no step needs them any more.

    def _search(self):
        run = self.run
        # On a GPU, a search that asks for all of them again and again keeps as many as there is room for.
        room = room_on(run.device) // 2 if run.device.type == "cuda" and self.metric.needs else 0
        moments = LazySequence(run.state.statistics.moments, lambda moment: moment.to(run.device), room)
        metrics = LazySequence(range(len(moments)), self.metric.at, room)
        progress = partial(run.progress, phase="Axes")
        axes = shared_axes(moments, metrics, run.plan.widths[0], progress=progress)
        for moment in moments:
            self.record_energy(axes, moment)
        return axes

    @timed("axes")
    def find(self, site, here, x, z) -> Basis:
        return self.basis(self.run.state.axes, self.metric.at(site))


class LazySequence(Sequence):
    """
    A sequence whose items are made when they are asked for.

    Args:
        items (`Sequence`): what the items are made of.
        make (callable): makes one item.
        room (`int`, defaults to 0): bytes of made tensors that are kept for the next time.
    """

    def __init__(self, items: Sequence, make: Callable[[Any], Any], room: int = 0):
        self._items, self._make, self._room, self._kept = items, make, room, {}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        if index in self._kept:
            return self._kept[index]
        made = self._make(self._items[index])
        if made is not None and made.nbytes <= self._room:
            self._room -= made.nbytes
            self._kept[index] = made
        return made
