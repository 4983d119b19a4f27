"""The axes of every site: of its own or one set for all, along which the stream is read and written."""

from functools import partial

import torch
from torch import Tensor

from .dense_pass import root_mean_square
from .rotation import add_second_moment_, random_orthogonal, shared_axes, weighed_axes
from .storage import Loaded
from .walk import Walk


DAMPING = 0.1
"""Share of the identity in the metric: how far directions count that calibration found the loss insensitive to."""

AXES_TOKENS = 8
"""Second moments before the walk are taken on so many tokens for every dimension."""


class AxesWalk(Walk):
    """A walk that finds axes beyond the paper's: weighed by the gradient of the loss, or shared by all sites."""

    STATE = (*Walk.STATE, "moments", "shared", "read", "write")

    def __init__(self, *args):
        super().__init__(*args)
        self.moments, self.shared, self.read, self.write = {}, None, None, None

    def share_axes(self) -> None:
        with self.phase("axes"):
            moments = Loaded(self.moments["signal"], lambda moment: moment.to(self.device))
            metrics = Loaded(range(len(moments)), self.metric)
            axes = shared_axes(moments, metrics, self.plan.widths[0], progress=partial(self.progress, desc="Axes"))
            self.shared = self.processes.agreed(self.oriented(axes))

    @property
    def enough(self) -> int:
        """Number of this process's batches among the first on which second moments before the walk are taken."""
        count, wanted = 0, AXES_TOKENS * self.plan.hidden_size
        while count < len(self.batch_tokens) and wanted > 0:
            wanted -= self.batch_tokens[count]
            count += 1
        return len(self.processes.share(range(count)))

    def metric(self, site: int) -> Tensor | None:
        """
        How deviations at a site are weighed `(D, D)`, or `None` for all alike.

        Raises:
            ValueError: the calibration tokens give no gradient.
        """
        if self.config.metric == "none":
            return None
        moment = self.moments["gradient"][site].to(self.device)
        if not moment.trace() > 0:
            raise ValueError(
                f"metric='fisher' found no gradient at {self.site_name(site)}; the model is unchanged. Calibrate on "
                "sequences of at least 2 tokens, or use metric='none'."
            )
        identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device) / len(moment)
        return moment / moment.trace() + DAMPING * identity

    def oriented(self, axes: Tensor) -> Tensor:
        if self.config.orientation == "random":
            return axes @ random_orthogonal(axes.shape[1], self.generator).to(axes)
        return axes

    def enter(self, streams: list[Tensor]) -> None:
        """
        Finds the axes of the current site, `(D, k)`, float64: orthonormal ones, along which the stream is read, and
        those along which it is written. The dense stream `(B, T, D)` x becomes `x @ write`, for `x @ write @ read.T`.
        """
        if self.moments:
            moment = self.moments["signal"][self.site].to(self.device)
        else:
            with self.phase("second moments"):
                size = self.plan.hidden_size
                moment = torch.zeros(size, size, dtype=torch.float64, device=self.device)
                for signal, stream in zip(self.signals, streams, strict=True):
                    stream = signal.tokens(stream.to(self.device))
                    add_second_moment_(moment, stream, 1 / root_mean_square(stream))
                self.add_up(moment)
            self.check_finite(moment, self.site)
        with self.phase("axes"):
            metric = self.metric(self.site)
            if self.plan.shortcuts:
                axes = weighed_axes(moment, metric)[:, : self.plan.widths[self.site]]
                self.read = self.processes.agreed(self.oriented(axes))
            else:
                self.read = self.shared
            self.write = self.read
            if metric is not None:
                write = torch.linalg.solve(self.read.T @ metric @ self.read, self.read.T @ metric).T
                self.write = self.processes.agreed(write)
            self.energy_kept.append(((self.read.T @ moment @ self.read).trace() / moment.trace()).item())
