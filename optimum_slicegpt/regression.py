"""Pure mathematics of linear regression for refits, on tensors. Of ours, imports mathematics alone."""

from functools import cache

import torch
from torch import Tensor

from .rotation import add_products_, mirror_


STRENGTHS = (10.0, 3.0, 1.0, 3e-1, 1e-1, 3e-2, 1e-2, 1e-3)
"""
Strengths of the ridge, in units of each input's own sum of squares. Weaker ones would be no match for the rounding of
products in float32, where tokens are all alike.
"""

FIRST_STRENGTH = 0.3
"""Where the search for the best one starts."""

ROUNDING = 1e-6
"""Share of the mean energy that the ridge supposes of every input: bfloat16's rounding errors have as much."""

HELD_OUT = 8
"""One token in so many is held out to choose the strength by."""

JUDGED_OUTPUTS = 64
"""So many outputs, evenly spaced, are enough to choose the strength by."""

TOKENS_AT_ONCE = 4096
"""Products are taken of so many tokens, once they have come together."""

COMPENSATION = 0.2
"""
Strength of the ridge where inputs that are deleted are expressed by those that stay. Measured on SmolLM2: from 0.03 to
0.3 all do about as well; 0.001 is worse on the calibrated kind of text, and far worse on others.
"""

ROUNDS = 2
"""Inputs are deleted in so many rounds, with their costs computed anew before each."""


class LeastSquares:
    """
    A linear regression `y ≈ a W`, of which only sums are kept, in float64.

    Args:
        inputs (`int`): length of a.
        outputs (`int`): length of y.
        device (`torch.device`): holds the sums.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device):
        # Products of inputs with inputs and, behind them, outputs: first of the tokens that are fitted, second of
        # those that are held out.
        self._sums = torch.zeros(2, inputs, inputs + outputs, dtype=torch.float64, device=device)
        self._waiting, self._counts = [None, None], [0, 0]

    def add(self, a: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """
        Adds some tokens, of which the last are held out.

        Args:
            a (`torch.Tensor` of shape `(tokens, inputs)`): its dtype is the one of which products are taken.
            y (`torch.Tensor` of shape `(tokens, outputs)`): in any dtype.
            weight (`torch.Tensor` of shape `(tokens, 1)`, *optional*): by which both are multiplied.
        """
        fitted = len(a) - len(a) // HELD_OUT
        for part, tokens in enumerate((slice(fitted), slice(fitted, None))):
            values = a[tokens], y[tokens], *(() if weight is None else (weight[tokens],))
            for some in zip(*(each.split(TOKENS_AT_ONCE) for each in values), strict=True):
                self._put(part, *some)

    def _put(self, part, a, y, weight=1.0):
        """Writes tokens, once, to where they wait for their products."""
        if self._counts[part] + len(a) > TOKENS_AT_ONCE:
            self._take(part)
        if self._waiting[part] is None:
            self._waiting[part] = a.new_empty(TOKENS_AT_ONCE, self._sums.shape[-1])
        place = self._waiting[part][self._counts[part] :][: len(a)]
        torch.mul(a, weight, out=place[:, : a.shape[1]])
        torch.mul(y, weight, out=place[:, a.shape[1] :])
        self._counts[part] += len(a)

    def _take(self, part):
        if self._counts[part]:
            add_products_(self._sums[part], self._waiting[part][: self._counts[part]])
        self._counts[part] = 0

    @property
    def sums(self) -> Tensor:
        """All that is kept of the tokens: regressions of other tokens are joined by adding theirs, in place."""
        for part in range(2):
            self._take(part)
        return self._sums

    def gram_and_cross(self) -> tuple[Tensor, Tensor]:
        """Products of inputs with inputs `(2, n, n)`, and of inputs with outputs `(2, n, k)`: views of the sums."""
        for total in self.sums:
            mirror_(total)
        inputs = self._sums.shape[1]
        return self._sums[..., :inputs], self._sums[..., inputs:]

    def solve(self, prior: Tensor) -> Tensor:
        """
        The W that minimises `|y - a W|² + strength · |N (W - prior)|²` over all tokens, N the inputs' norms.

        So inputs of little energy may change as much, in what they do, as others: a ridge alike for all would leave
        them where they are. The strength is the one whose solution without the tokens held out serves these best.
        Where none serves them better than the prior, that is returned: too few tokens cannot do harm.

        Args:
            prior (`torch.Tensor` of shape `(inputs, outputs)`, float64).

        Returns:
            `torch.Tensor` of shape `(inputs, outputs)`, float64.
        """
        gram, cross = self.gram_and_cross()
        strength = best_strength(gram, cross, prior)
        if strength is None:
            return prior
        gram = gram.sum(0)
        return prior + ridge(gram, cross.sum(0) - gram @ prior, strength)

    def without(self, candidates: slice, count: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        """
        Deletes those inputs that cost least when the weights of all others compensate (Optimal Brain Surgeon).

        Args:
            candidates (`slice`): inputs that may be deleted; the others stay.
            count (`int`): number of inputs to delete.
            weight (`torch.Tensor` of shape `(inputs, outputs)`, float64): W.

        Returns:
            `tuple`: weights of the inputs that stay, `(inputs - count, outputs)`, and their indices, ascending.
        """
        inverse = torch.cholesky_inverse(_cholesky(self.gram_and_cross()[0].sum(0), COMPENSATION))
        stays = torch.arange(len(inverse), device=inverse.device)
        fixed = torch.ones_like(stays, dtype=torch.bool)
        fixed[candidates] = False
        for done in range(ROUNDS):
            cost = weight.square().sum(1) / inverse.diagonal()
            cost[fixed[stays]] = float("inf")
            order = cost.argsort()
            deleted, left = order.tensor_split([count * (done + 1) // ROUNDS - count * done // ROUNDS])
            left = left.sort().values
            # Of what the deleted ones did, the others take over what they can; so it is with what each costs.
            shared = inverse[deleted][:, left]
            to_others = torch.linalg.solve(inverse[deleted][:, deleted], shared).T
            weight = weight[left] - to_others @ weight[deleted]
            inverse = inverse[left[:, None], left]
            inverse -= to_others @ shared
            stays = stays[left]
        return weight, stays


def spacing(inputs: int, most: int) -> int:
    """
    A regression takes one token in so many: that with the most inputs all, others at least as many for each input.

    Args:
        inputs (`int`), most (`int`): numbers of inputs of the regression, and of the largest one.
    """
    return max(1, most // inputs)


def best_strength(gram: Tensor, cross: Tensor, prior: Tensor) -> float | None:
    """
    Among [`STRENGTHS`], that of the ridge that serves tokens which were held out best, or `None` if the prior does.

    Args:
        gram (`torch.Tensor` of shape `(2, n, n)`), cross (`torch.Tensor` of shape `(2, n, k)`):
            Sums over tokens that are fitted, and over those that are held out; float64.
        prior (`torch.Tensor` of shape `(n, k)`, float64): what the ridge leads to.
    """
    judged = torch.arange(0, prior.shape[1], max(1, prior.shape[1] // JUDGED_OUTPUTS), device=prior.device)
    # In units of each input, which float32 is enough for.
    unit = energies(gram[0]).sqrt()[:, None]
    missing, wanted = ((cross[..., judged] - gram @ prior[:, judged]) / unit).float()
    gram, judge = ((each / unit / unit.T).float() for each in gram)

    @cache
    def loss(index):
        damped = gram.clone()
        damped.diagonal().add_(STRENGTHS[index])
        change = torch.cholesky_solve(missing, torch.linalg.cholesky(damped))
        return ((judge @ change - 2 * wanted) * change).sum().item()

    best = STRENGTHS.index(FIRST_STRENGTH)
    for step in (-1, 1):
        while 0 <= best + step < len(STRENGTHS) and loss(best + step) < loss(best):
            best += step
    return STRENGTHS[best] if loss(best) < 0 else None


def ridge(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    """
    Solves `(gram + strength · N²) W = cross`, N² the inputs' [`energies`].

    Args:
        gram (`torch.Tensor` of shape `(n, n)`), cross (`torch.Tensor` of shape `(n, k)`): float64.
        strength (`float`): more than 0.
    """
    return torch.cholesky_solve(cross, _cholesky(gram, strength))


def energies(gram: Tensor) -> Tensor:
    """Each input's own sum of squares `(n,)`, as the ridge has it: more than 0."""
    own = gram.diagonal()
    return own.clamp_min(ROUNDING * own.mean()) + torch.finfo(gram.dtype).tiny


def _cholesky(gram, strength):
    damped = gram.clone()
    damped.diagonal().add_(strength * energies(gram))
    return torch.linalg.cholesky(damped)
