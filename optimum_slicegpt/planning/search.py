"""`max_loss`: the smallest size whose loss, which only slicing and measuring tells, is within a limit."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence


TYPICAL = (0.11, 0.28)
"""A share of the parameters, and the loss without it in nats, from which a search starts. Measured on SmolLM2."""
EXPONENT = 1.0
"""A model loses about `share ** EXPONENT` as a share of its parameters goes. On SmolLM2, from 3 to 30 %: 0.95."""
FLATTEST = 0.25
"""Of two losses that lie closer to each other than by this exponent, the difference is noise."""
RUNS = 3
"""Sizes that a search measures as a rule."""
SMALLEST_LOSS, LARGEST_LOSS = 1e-3, 20.0
"""Bounds of the losses from which others are predicted. Some are no more than their error, and some not finite."""


def find_smallest(shares: Sequence[float], limit: float, measure: Callable[[int], float]) -> int:
    """
    Finds the smallest size whose loss is within a limit, and measures few of them. The loss is taken to rise with the
    share; it is measured at the size that is returned and at the next smaller one.

    Args:
        shares (`Sequence[float]`): of the parameters that each size is without, ascending.
        limit (`float`): nats.
        measure (callable): returns the loss at an index of `shares`.

    Returns:
        `int`: index of the size; -1 if not even the largest is within the limit.

    Examples:
        >>> find_smallest([0.05, 0.1, 0.15, 0.2, 0.25], 0.1, lambda index: [0.02, 0.06, 0.11, 0.17, 0.25][index])
        1
    """
    within, beyond, points, turns = -1, len(shares), {}, []
    while beyond - within > 1:
        if turns[-3:] in ([True] * 3, [False] * 3) and 0 <= within and beyond < len(shares):
            index = (within + beyond) // 2  # Predictions that keep erring to one side get there in small steps.
        else:
            index = bisect_right(shares, predict_share(points, limit)) - 1
        index = min(max(index, within + 1), beyond - 1)
        points[shares[index]] = loss = measure(index)
        turns.append(loss <= limit)
        within, beyond = (index, beyond) if loss <= limit else (within, index)
    return within


def predict_share(points: Mapping[float, float], limit: float) -> float:
    """
    Predicts the share at which a loss reaches a limit: a power of the share leads through the nearest point on either
    side of it, or the two nearest on one.

    Args:
        points (`Mapping[float, float]`): losses in nats that were measured, by share.
        limit (`float`): nats.

    Examples:
        >>> round(predict_share({0.1: 0.05, 0.2: 0.2}, limit=0.1), 4)
        0.1414
    """

    def height(share):
        return math.log(min(max(points[share], SMALLEST_LOSS), LARGEST_LOSS) / limit)

    if not points:
        return TYPICAL[0] * (limit / TYPICAL[1]) ** (1 / EXPONENT)
    by_height = sorted(points, key=lambda share: abs(height(share)))
    nearest, exponent = by_height[0], EXPONENT
    across = [share for share in by_height if (height(share) > 0) != (height(nearest) > 0)]
    for other in (*across, *by_height[1:])[:1]:
        slope = (height(other) - height(nearest)) / math.log(other / nearest)
        exponent = slope if slope > FLATTEST else EXPONENT
    return nearest * math.exp(-height(nearest) / exponent)
