"""
How a deviation of the stream is weighted: all directions alike (`metric="none"`), or as the loss depends on them
(`metric="fisher"`).

The stream counts in units of each token's root mean square r, as its readers see it. With g the gradient of the summed
next-token loss with respect to x / r, a deviation d of x / r changes the loss by gᵀd. Its mean square over tokens is
`dᵀ F d` with `F = E[g gᵀ]`, the empirical Fisher information. The metric is `F / tr F + DAMPING · I / D`.
"""

import torch
from torch import Tensor

from ..parts import Metric


DAMPING = 0.1
"""Share of the identity in the metric: how far directions count that calibration found the loss insensitive to."""


class PlainMetric(Metric):
    """The same weight for all directions."""


class FisherMetric(Metric):
    """A weight for each direction, as the loss depends on it."""

    needs = frozenset({"moments", "gradients"})

    def at(self, site: int) -> Tensor:
        """
        Returns the metric of a site.

        Raises:
            ValueError: the calibration tokens have no gradient.
        """
        moment = self.run.state.statistics.gradients[site].to(self.run.device)
        if not moment.trace() > 0:
            raise ValueError(
                f"metric='fisher' found no gradient at {self.run.dense.site_name(site)}; the model is unchanged. "
                "Calibrate on sequences of at least 2 tokens, or use metric='none'."
            )
        identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device) / len(moment)
        return moment / moment.trace() + DAMPING * identity
