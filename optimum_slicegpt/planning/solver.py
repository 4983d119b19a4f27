"""The widths and the number of neurons that give a model a wanted number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

from ..modeling.decoder import Decoder, empty_model
from ..modeling.families import family_of, num_neurons
from .rounding import SMALLEST_STEP, halvings
from .settings import neuron_step, sliced_sites, width_step
from .sizes import Size, parameter_size


NEURONS_FIRST = 0.5
"""
Share of neurons that are deleted before any hidden dimension is. Measured on SmolLM2, calibrated on WikiText-2, at 20
and 30 % fewer parameters: the mean damage over three kinds of text is less than with any dimension deleted. Whole
layers cost more, too: two of 30 instead of 112 neurons of each took it from 0.64 to 0.72 nats.
"""
NEURONS_PER_DIMENSION = 6.0
"""
Ratio of the share of neurons that are deleted beyond that to the share of hidden dimensions. Measured on SmolLM2:
ratios of 4 and more do about equally little damage, lower ones do more.
"""
MOST_NEURONS = 0.6
"""Greatest share of neurons that are deleted. A larger reduction deletes more hidden dimensions instead."""
TOLERANCE = 0.015
"""
By how much a solution may be smaller than what was wanted, as a share of the dense model's parameters. With a third
less, SmolLM2 at -10 % and Qwen2.5-1.5B at -20 % would not fill the blocks of quantized formats, which costs more.
"""
FAR = 0.1
"""
Distance of a solution from the best split at which smaller steps are tried: the sum of the shares of dimensions and of
neurons by which they differ.
"""
BISECTIONS = 60
"""Number of halvings of an interval of shares, enough for float64."""


def neuron_share(hidden_share: float) -> float:
    """
    Returns the share of neurons to delete that goes best with a share of hidden dimensions.

    Args:
        hidden_share (`float`): share of hidden dimensions to delete, in [0, 1).

    Returns:
        `float`: share of neurons to delete, in [0, 1). It never falls as `hidden_share` rises. Where no dimension is
            deleted, fewer may be enough.
    """
    return min(NEURONS_FIRST + NEURONS_PER_DIMENSION * hidden_share, MOST_NEURONS)


@dataclass(frozen=True)
class Solver:
    """
    A solver for the widths and the number of neurons that give a model a wanted number of parameters.

    Args:
        size ([`Size`]): parameters of the sliced model.
        dense (`int`): parameters of the dense model.
        groups (`list[list[int]]`): sites to slice; the sites of one group must be equally wide.
        shortcuts (`bool`): whether a linear layer leads from each site to the next.
        neurons (`int`, *optional*): neurons in each MLP. By default [`neuron_share`] determines their number.
        step (`int`), neuron_step (`int`): widths and neurons are multiples of these where such a model is near enough.
        fits (callable, *optional*): says whether there is a class for a width. By default there is one for all.
    """

    size: Size
    dense: int
    groups: list[list[int]]
    shortcuts: bool
    neurons: int | None
    step: int
    neuron_step: int
    fits: Callable[[int], bool] | None = None

    def solve(self, reduction: float) -> tuple[list[int], int]:
        """
        Finds whole widths and a whole number of neurons that delete a share of the parameters.

        The best split between dimensions and neurons is a pair of real numbers. Candidates are multiples of the steps.
        Of those that delete what is asked for and at most [`TOLERANCE`] more, the one nearest to the best split is
        returned. If there are none, or all are [`FAR`] from it, the step of neurons is halved, down to
        [`SMALLEST_STEP`], and then that of widths; if there are still none, both are, down to 1. If all fail, the
        candidate that misses the wanted size least is returned.

        Args:
            reduction (`float`): share of the dense model's parameters to delete.

        Returns:
            `tuple`: width at every site, and neurons in each MLP.

        Raises:
            ValueError: no widths reach this share.
        """
        target, slack = (1 - reduction) * self.dense, TOLERANCE * self.dense
        full_widths, _ = self.split(0)
        most = self.count(full_widths, self.size.neurons if self.neurons is None else self.neurons)
        least = self.count(*self.smallest())
        if not least - slack <= target <= most + slack:
            shares = (max(0, 1 - total / self.dense) for total in (most, least))
            raise ValueError(
                f"parameter_reduction={reduction} is out of reach: with these settings, "
                f"{' to '.join(f'{share:.1%}' for share in shares)} of the parameters can go. Give a share in that "
                "range, or change mlp_sparsity, slice_head or embeddings."
            )
        low, high = 0.0, 1 - 1 / self.size.hidden_size
        for _ in range(BISECTIONS):
            share = (low + high) / 2
            low, high = (share, high) if self.count(*self.split(share)) > target else (low, share)
        best = self.split(high)
        if self.neurons is None and self.count(*self.split(0)) <= target:
            best = full_widths, self.neurons_at(target, full_widths)

        def distance(candidate):
            (widths, neurons), (best_widths, best_neurons) = candidate, best
            dimensions = abs(sum(widths) - sum(best_widths)) / (len(widths) * self.size.hidden_size)
            return dimensions + abs(neurons - best_neurons) / self.size.neurons

        nearest = None
        for steps in self.steps():
            if nearest and min(steps) < SMALLEST_STEP:
                break
            found = list(self.candidates(target, min(best[0]), *steps))
            near = [candidate for candidate in found if 0 <= target - self.count(*candidate) <= slack]
            nearest = min(filter(None, [nearest, *near]), key=distance, default=None)
            if nearest and distance(nearest) <= FAR:
                break
        return nearest or min(found, key=lambda candidate: abs(self.count(*candidate) - target))

    def steps(self) -> list[tuple[int, int]]:
        """Lists the steps of widths and of neurons in the order in which they are tried."""
        of_neurons = [SMALLEST_STEP] if self.neurons is not None else halvings(self.neuron_step)
        steps = list(product(halvings(self.step), of_neurons))
        return sorted(steps, key=lambda pair: min(pair) < SMALLEST_STEP)

    def smallest(self) -> tuple[list[float], float]:
        """Returns the least widths and the least number of neurons that are possible."""
        full = self.size.hidden_size
        width = next((width for width in range(1, full) if self.fits is None or self.fits(width)), full)
        neurons = (1 - MOST_NEURONS) * self.size.neurons if self.neurons is None else self.neurons
        return self.widths([width] * len(self.groups)), neurons

    def count(self, widths: Sequence[float], neurons: float) -> float:
        """Computes the number of parameters."""
        return self.size(widths, neurons, self.shortcuts)

    def split(self, share: float) -> tuple[list[float], float]:
        """Computes the real widths, and the real number of neurons beside them, for a share of deleted dimensions."""
        neurons = (1 - neuron_share(share)) * self.size.neurons if self.neurons is None else self.neurons
        return self.widths([(1 - share) * self.size.hidden_size] * len(self.groups)), neurons

    def neurons_at(self, target: float, widths: Sequence[float]) -> float:
        """Computes the real number of neurons with which a model of some widths has a wanted size."""
        without_neurons = self.count(widths, 0)
        return (target - without_neurons) / (self.count(widths, 1) - without_neurons)

    def widths(self, of_groups: Sequence[float]) -> list[float]:
        """Computes the width of every site from the width of every group."""
        widths = [self.size.hidden_size] * (len(self.size.rows) - 1)
        for width, group in zip(of_groups, self.groups, strict=True):
            for site in group:
                widths[site] = min(width, self.size.hidden_size)
        return widths

    def candidates(self, target: float, width: float, step: int, neuron_step: int) -> Iterator[tuple[list[int], int]]:
        """
        Yields whole widths, with the numbers of neurons that come nearest to a size.

        Args:
            target (`float`): wanted number of parameters.
            width (`float`): real width of the groups.
            step (`int`): widths are multiples of this.
            neuron_step (`int`): numbers of neurons are multiples of this.
        """
        for widths in self.all_widths(step) if len(self.groups) == 1 else self.widths_around(width, step):
            if self.neurons is not None:
                yield widths, self.neurons
                continue
            fewer = self.neurons_at(target, widths) // neuron_step * neuron_step
            least = ceil((1 - MOST_NEURONS) * self.size.neurons / neuron_step) * neuron_step
            for neurons in (fewer, fewer + neuron_step):
                yield widths, int(min(max(neurons, least), self.size.neurons))

    def all_widths(self, step: int) -> Iterator[list[int]]:
        """Yields all multiples of `step` that there is a class for, and the dense width."""
        hidden_size = self.size.hidden_size
        for width in sorted({*range(step, hidden_size, step), hidden_size}):
            if self.fits is None or self.fits(width):
                yield [int(each) for each in self.widths([width])]

    def widths_around(self, width: float, step: int) -> Iterator[list[int]]:
        """Yields multiples of `step` around a real width, for every site. The first or the last may be wider."""
        lower, groups = width // step * step, len(self.groups)
        for wider in (0, groups) if self.neurons is None else range(groups + 1):
            of_groups = [lower + step] * wider + [lower] * (groups - wider)
            for order in (of_groups, of_groups[::-1]):
                widths = [int(each) for each in self.widths(order)]
                if min(widths) >= 1:
                    yield widths


def solve(config, model_config, neurons, embeddings, fits=None) -> tuple[list[int], int | None]:
    """
    Finds what reaches a `parameter_reduction`, with the given number of neurons or the best.

    Args:
        config ([`SliceGPTConfig`]): has `parameter_reduction`.
        model_config (`PreTrainedConfig`): of the dense model.
        neurons (`int`, *optional*): that `mlp_sparsity` leaves.
        embeddings (`str`): see [`SlicePlan`].
        fits (callable, *optional*): says which hidden sizes a stock class has; for a sliced class there is none.

    Returns:
        `tuple`: widths of the weights at all sites; neurons, or `None` for all.
    """
    hidden_size, family, reduction = model_config.hidden_size, family_of(model_config), config.parameter_reduction
    if reduction == 0 and neurons is None:
        return [hidden_size] * family.num_sites(model_config), None
    model, all_neurons = empty_model(model_config), num_neurons(model_config)
    if neurons is None and not (config.refit and config.mlp_sparsity is None and not family.keeps_neurons):
        neurons = all_neurons
    step, dense = width_step(config, model_config), model.num_parameters()
    solver = Solver(
        parameter_size(Decoder(model), embeddings, fits is not None),
        dense,
        sliced_sites(config, model_config, embeddings == "tied"),
        config.rotation == "per_block",
        neurons,
        step,
        neuron_step(config, model_config),
        fits,
    )
    widths, neurons = solver.solve(reduction)
    return widths, neurons if neurons < all_neurons else None
