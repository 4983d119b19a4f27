"""
How many neurons each MLP keeps: all the same number (`schedule="uniform"`), or more where neurons add more to the
stream (`schedule="energy"`).

A neuron costs the energy that it adds to the stream: `Σ (a |w|)²` over tokens, a its activation in units of the
token's root mean square, w its row of the writer. One more neuron then saves as much in each layer.
"""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor

from ...planning.settings import neuron_step
from ..parts import Neurons


MOST_DELETED = 1.6
"""
No MLP loses more than so many times the mean share of its neurons. Costs do not show what deep layers lose for the
head. Measured on SmolLM2, where no bound at all is worse on text of the calibration's kind.
"""


class UniformNeurons(Neurons):
    """The same number of neurons for each MLP."""


class EnergyNeurons(Neurons):
    """More neurons for layers whose neurons add more to the stream."""

    def __init__(self, run):
        super().__init__(run)
        self.decides = run.plan.neurons is not None
        if self.decides:
            self.needs = frozenset({"costs"})

    def decide(self) -> None:
        run = self.run
        costs = [each.to("cpu") for each in run.state.statistics.costs]
        run.set_neurons(neurons_by_layer(costs, run.plan.neurons, neuron_step(run.config, run.dense.config)))


def neurons_by_layer(costs: Sequence[Tensor], mean: int, round_to: int = 1) -> list[int]:
    """
    Shares neurons out among MLPs, so that one more would save as much in each, within [`MOST_DELETED`].

    Args:
        costs (`Sequence[torch.Tensor]` of shape `(neurons,)`): what deleting each neuron of each MLP costs.
        mean (`int`): number of neurons that an MLP keeps on average.
        round_to (`int`): numbers are multiples of this, if `mean` and the size of the MLPs are.

    Returns:
        `list[int]`: one number for each MLP; their sum is exactly `mean * len(costs)`.

    Examples:
        >>> costs = [torch.tensor([9.0, 8.0, 2.0, 1.0]), torch.tensor([7.0, 0.5, 0.3, 0.1])]
        >>> neurons_by_layer(costs, mean=2)
        [3, 1]
    """
    most, unit = len(costs[0]), gcd(mean, len(costs[0]), round_to)
    least = max(unit, int(most - MOST_DELETED * (most - mean)) // unit * unit)
    # Every MLP keeps its dearest `least` neurons. The others compete in units, each at what its neurons cost together.
    units = [cost.sort(descending=True).values[least:].unflatten(0, (-1, unit)).sum(1) for cost in costs]
    layers = torch.arange(len(costs)).repeat_interleave(len(units[0]))
    dearest = torch.cat(units).sort(descending=True, stable=True).indices[: (mean - least) * len(costs) // unit]
    return [least + unit * count for count in layers[dearest].bincount(minlength=len(costs)).tolist()]
