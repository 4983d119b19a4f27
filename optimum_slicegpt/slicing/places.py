"""Where the tokens of a batch stand among all calibration tokens of their kind of text: by that they are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor


HELD_OUT = 8
"""One token in so many is held out to choose the strength of a ridge."""

HELD_OUT_EVERY = 8192
"""Held-out tokens are the last [`HELD_OUT`]-th of about so many tokens: far from the others, and of all parts."""


@dataclass(frozen=True)
class Place:
    """
    The place of a batch. Tokens are numbered among those of their kind of text (group), padding left out, over the
    batches of all processes. So it makes no difference to a sample how tokens are shared out among batches.

    Args:
        group (`int`): kind of text.
        first (`int`): number of the batch's first token.
        count (`int`): number of its tokens.
        total (`int`): number of tokens of this kind.
        weight (`float`): by which each token's values are multiplied, so that all kinds count alike.
    """

    group: int = 0
    first: int = 0
    count: int = 0
    total: int = 0
    weight: float = 1.0

    def sampled(self, stride: int) -> slice:
        """Returns which of the batch's tokens have numbers that a stride divides."""
        return slice(-self.first % stride, None, stride)

    def held_out(self, stride: int) -> Tensor:
        """
        Tells which of the sampled tokens are held out.

        Returns:
            `torch.Tensor` of shape `(tokens,)`, bool, on the CPU.
        """
        numbers = torch.arange(self.first, self.first + self.count)[self.sampled(stride)]
        stretches = HELD_OUT * ceil(self.total / HELD_OUT_EVERY)
        return numbers * stretches // self.total % HELD_OUT == HELD_OUT - 1


def places_of(counts: Sequence[int], groups: Sequence[int]) -> list[Place]:
    """
    Finds the place of every batch.

    Args:
        counts (`Sequence[int]`): tokens of each batch, padding left out.
        groups (`Sequence[int]`): kind of text of each.

    Examples:
        >>> [place.first for place in places_of([8, 5, 8], [0, 1, 0])]
        [0, 0, 8]
    """
    totals = {group: 0 for group in groups}
    firsts = []
    for count, group in zip(counts, groups, strict=True):
        firsts.append(totals[group])
        totals[group] += count
    weights = {group: sqrt(sum(counts) / (len(totals) * total)) for group, total in totals.items()}
    numbers = {group: number for number, group in enumerate(sorted(totals))}
    return [
        Place(numbers[group], first, count, totals[group], weights[group])
        for count, group, first in zip(counts, groups, firsts, strict=True)
    ]
