"""Which widths, and how many neurons, make a model as large as it is to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .sizes import Size


NEURONS_PER_DIMENSION = 6.0
"""
Share of neurons deleted for each share of hidden dimensions. Measured on SmolLM2, where damage hardly changes from 4
on upwards, and is larger below.
"""
MOST_NEURONS = 0.6
"""Share of neurons of which no more are deleted; the hidden dimensions carry the rest."""
TOLERANCE = 0.005
"""Share of the dense model's parameters by which a solution may miss."""
BISECTIONS = 60


def inner_share(hidden_share: float) -> float:
    """
    Share of the MLPs' neurons that goes best with a share of hidden dimensions, where a model is to reach a size.

    Args:
        hidden_share (`float`): share of hidden dimensions to delete, in [0, 1).

    Returns:
        `float`: share of neurons to delete, in [0, 1). May not fall as `hidden_share` rises.
    """
    return min(NEURONS_PER_DIMENSION * hidden_share, MOST_NEURONS)


@dataclass(frozen=True)
class Solver:
    """
    Finds widths and neurons with which a model has so many parameters.

    Args:
        size ([`Size`]): parameters of the sliced model.
        dense (`int`): parameters of the dense model.
        hidden_size (`int`): D, the width of sites that are in no group.
        groups (`list[list[int]]`): sites that can be narrowed, those together that must be equally wide.
        shortcuts (`bool`): whether a linear layer leads from each site to the next.
        inner (`int`, *optional*): neurons in each MLP. By default as many as [`inner_share`] says.
        round_to (`int`): widths and neurons are multiples of this where such a model is near enough.
    """

    size: Size
    dense: int
    hidden_size: int
    groups: list[list[int]]
    shortcuts: bool
    inner: int | None
    round_to: int

    def solve(self, reduction: float) -> tuple[list[int], int]:
        """
        The nearest to the best split between dimensions and neurons among what lands within half of [`TOLERANCE`], or
        else within all of it. Where nothing does, multiples of smaller numbers are tried: `round_to` is halved for
        neurons down to 1, then for widths. Where still nothing does, it is what comes nearest.

        Args:
            reduction (`float`): share of the dense model's parameters to delete.

        Returns:
            `tuple`: width at every site, and neurons in each MLP.

        Raises:
            ValueError: no widths lead there.
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
            (widths, inner), (best_widths, best_inner) = candidate, best
            dimensions = abs(sum(widths) - sum(best_widths)) / (len(widths) * self.hidden_size)
            return dimensions + abs(inner - best_inner) / self.size.inner

        for step in halvings(self.round_to):
            for inner_step in halvings(self.round_to) if self.inner is None else [1]:
                found = list(self.candidates(target, min(best[0]), step, inner_step))
                for tolerance in (slack / 2, slack):
                    near = [candidate for candidate in found if miss(candidate) <= tolerance]
                    if near:
                        return min(near, key=distance)
        return min(found, key=miss)

    def count(self, widths, inner) -> float:
        return self.size(widths, inner, self.shortcuts)

    def split(self, share: float) -> tuple[list[float], float]:
        """Real widths and neurons that go together when a share of the dimensions is deleted."""
        inner = (1 - inner_share(share)) * self.size.inner if self.inner is None else self.inner
        return self.widths([(1 - share) * self.hidden_size] * len(self.groups)), inner

    def widths(self, of_groups: Sequence[float]) -> list[float]:
        widths = [self.hidden_size] * (len(self.size.rows) - 1)
        for width, group in zip(of_groups, self.groups, strict=True):
            for site in group:
                widths[site] = min(width, self.hidden_size)
        return widths

    def candidates(self, target, width, step, inner_step) -> Iterator[tuple[list[int], int]]:
        """Whole widths around a real one, and neurons that make up for the step."""
        for widths in self.widths_around(width, step):
            if self.inner is not None:
                yield widths, self.inner
                continue
            without = self.count(widths, 0)
            fewer = (target - without) / (self.count(widths, 1) - without) // inner_step * inner_step
            for inner in (fewer, fewer + inner_step):
                yield widths, int(min(max(inner, inner_step), self.size.inner))

    def widths_around(self, width, step) -> Iterator[list[int]]:
        """The first or the last groups may be a step wider than the others, where no neurons make up for a step."""
        narrow, groups = width // step * step, len(self.groups)
        for wider in (0, groups) if self.inner is None else range(groups + 1):
            of_groups = [narrow + step] * wider + [narrow] * (groups - wider)
            for order in (of_groups, of_groups[::-1]):
                widths = [int(width) for width in self.widths(order)]
                if min(widths) >= 1:
                    yield widths


def halvings(number: int) -> Iterator[int]:
    """The number, its half, and so on down to 1; halves are rounded down."""
    while number:
        yield number
        number //= 2
