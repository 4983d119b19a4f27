"""How many neurons each MLP keeps, where some may keep more than others."""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor


MOST_DELETED = 1.6
"""
No MLP loses more than so many times the mean share of its neurons. What deep layers lose is lost for the head, which
their costs do not say: measured on SmolLM2, where no bound at all is worse on the calibrated kind of text.
"""


def neurons_by_layer(costs: Sequence[Tensor], mean: int, round_to: int = 1) -> list[int]:
    """
    Shares neurons out among MLPs, so that one more would save as much in each, within [`MOST_DELETED`].

    Args:
        costs (`Sequence[torch.Tensor]` of shape `(neurons,)`): what deleting each neuron of each MLP costs.
        mean (`int`): number of neurons that an MLP keeps on average.
        round_to (`int`): numbers are multiples of this, if `mean` and the size of the MLPs are.

    Returns:
        `list[int]`: one number for each MLP; their sum is exactly `mean * len(costs)`.
    """
    most, unit = len(costs[0]), gcd(mean, len(costs[0]), round_to)
    sure = max(unit, int(most - MOST_DELETED * (most - mean)) // unit * unit)
    # What a unit of neurons costs, dearest first; those that every MLP keeps are out of the competition.
    units = [cost.sort(descending=True).values[sure:].unflatten(0, (-1, unit)).sum(1) for cost in costs]
    layers = torch.arange(len(costs)).repeat_interleave(len(units[0]))
    dearest = torch.cat(units).sort(descending=True, stable=True).indices[: (mean - sure) * len(costs) // unit]
    return [sure + unit * count for count in layers[dearest].bincount(minlength=len(costs)).tolist()]
