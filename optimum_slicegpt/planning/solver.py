"""The widths and the number of neurons that give a model a wanted number of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .sizes import Size


NEURONS_PER_DIMENSION = 6.0
"""
Ratio of the share of neurons that are deleted to the share of hidden dimensions. Measured on SmolLM2: ratios of 4 and
more do about equally little damage, lower ones do more.
"""
MOST_NEURONS = 0.6
"""Greatest share of neurons that are deleted. A larger reduction deletes more hidden dimensions instead."""
TOLERANCE = 0.005
"""Greatest distance of a solution from the wanted number, as a share of the dense model's parameters."""
BISECTIONS = 60
"""Number of halvings of an interval of shares, enough for float64."""


def neuron_share(hidden_share: float) -> float:
    """
    Returns the share of neurons to delete that goes best with a share of hidden dimensions.

    Args:
        hidden_share (`float`): share of hidden dimensions to delete, in [0, 1).

    Returns:
        `float`: share of neurons to delete, in [0, 1). It never falls as `hidden_share` rises.
    """
    return min(NEURONS_PER_DIMENSION * hidden_share, MOST_NEURONS)


@dataclass(frozen=True)
class Solver:
    """
    A solver for the widths and the number of neurons that give a model a wanted number of parameters.

    Args:
        size ([`Size`]): parameters of the sliced model.
        dense (`int`): parameters of the dense model.
        hidden_size (`int`): D, the width of sites that are in no group.
        groups (`list[list[int]]`): sites to slice; the sites of one group must be equally wide.
        shortcuts (`bool`): whether a linear layer leads from each site to the next.
        neurons (`int`, *optional*): neurons in each MLP. By default [`neuron_share`] determines their number.
        round_to (`int`): widths and neurons are multiples of this where such a model is near enough.
    """

    size: Size
    dense: int
    hidden_size: int
    groups: list[list[int]]
    shortcuts: bool
    neurons: int | None
    round_to: int

    def solve(self, reduction: float) -> tuple[list[int], int]:
        """
        Finds whole widths and a whole number of neurons that delete a share of the parameters.

        The best split between dimensions and neurons is a pair of real numbers. Candidates are multiples of `round_to`
        around it. Of the candidates within half of [`TOLERANCE`], or if there are none within all of it, the one
        nearest to the best split is returned. If there are still none, multiples of smaller numbers are tried:
        `round_to` is halved for neurons, down to 1, and then for widths. If all fail, the candidate that misses the
        wanted size least is returned.

        Args:
            reduction (`float`): share of the dense model's parameters to delete.

        Returns:
            `tuple`: width at every site, and neurons in each MLP.

        Raises:
            ValueError: no widths reach this share.
        """
        target = (1 - reduction) * self.dense
        low, high = 0.0, 1 - 1 / self.hidden_size
        most, least = (self.count(*self.split(share)) for share in (low, high))
        slack = TOLERANCE * self.dense
        if not least - slack <= target <= most + slack:
            shares = (max(0, 1 - total / self.dense) for total in (most, least))
            raise ValueError(
                f"parameter_reduction={reduction} is out of reach: with these settings, "
                f"{' to '.join(f'{share:.1%}' for share in shares)} of the parameters can go. Give a share in that "
                "range, or change mlp_sparsity, slice_head or embeddings."
            )
        for _ in range(BISECTIONS):
            share = (low + high) / 2
            low, high = (share, high) if self.count(*self.split(share)) > target else (low, share)
        best = self.split(high)

        def miss(candidate):
            return abs(self.count(*candidate) - target)

        def distance(candidate):
            (widths, neurons), (best_widths, best_neurons) = candidate, best
            dimensions = abs(sum(widths) - sum(best_widths)) / (len(widths) * self.hidden_size)
            return dimensions + abs(neurons - best_neurons) / self.size.neurons

        for step in halvings(self.round_to):
            for neuron_step in halvings(self.round_to) if self.neurons is None else [1]:
                found = list(self.candidates(target, min(best[0]), step, neuron_step))
                for tolerance in (slack / 2, slack):
                    near = [candidate for candidate in found if miss(candidate) <= tolerance]
                    if near:
                        return min(near, key=distance)
        return min(found, key=miss)

    def count(self, widths: Sequence[float], neurons: float) -> float:
        """Computes the number of parameters."""
        return self.size(widths, neurons, self.shortcuts)

    def split(self, share: float) -> tuple[list[float], float]:
        """Computes the real widths, and the real number of neurons beside them, for a share of deleted dimensions."""
        neurons = (1 - neuron_share(share)) * self.size.neurons if self.neurons is None else self.neurons
        return self.widths([(1 - share) * self.hidden_size] * len(self.groups)), neurons

    def widths(self, of_groups: Sequence[float]) -> list[float]:
        """Computes the width of every site from the width of every group."""
        widths = [self.hidden_size] * (len(self.size.rows) - 1)
        for width, group in zip(of_groups, self.groups, strict=True):
            for site in group:
                widths[site] = min(width, self.hidden_size)
        return widths

    def candidates(self, target: float, width: float, step: int, neuron_step: int) -> Iterator[tuple[list[int], int]]:
        """
        Yields whole widths around a real one, with the numbers of neurons that come nearest to a size.

        Args:
            target (`float`): wanted number of parameters.
            width (`float`): real width of the groups.
            step (`int`): widths are multiples of this.
            neuron_step (`int`): numbers of neurons are multiples of this.
        """
        for widths in self.widths_around(width, step):
            if self.neurons is not None:
                yield widths, self.neurons
                continue
            without_neurons = self.count(widths, 0)
            of_one_neuron = self.count(widths, 1) - without_neurons
            fewer = (target - without_neurons) / of_one_neuron // neuron_step * neuron_step
            for neurons in (fewer, fewer + neuron_step):
                yield widths, int(min(max(neurons, neuron_step), self.size.neurons))

    def widths_around(self, width: float, step: int) -> Iterator[list[int]]:
        """
        Yields multiples of `step` around a real width, for every site.

        All groups are equally wide where the number of neurons can compensate for the step. Where it is fixed, the
        first or the last groups may be a step wider than the others.
        """
        lower, groups = width // step * step, len(self.groups)
        for wider in (0, groups) if self.neurons is None else range(groups + 1):
            of_groups = [lower + step] * wider + [lower] * (groups - wider)
            for order in (of_groups, of_groups[::-1]):
                widths = [int(width) for width in self.widths(order)]
                if min(widths) >= 1:
                    yield widths


def halvings(number: int) -> Iterator[int]:
    """Yields a number, its half, and so on down to 1. Halves are rounded down."""
    while number:
        yield number
        number //= 2
