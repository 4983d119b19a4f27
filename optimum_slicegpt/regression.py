"""Pure mathematics of linear regression for refits, on tensors. Of ours, imports mathematics alone."""

import torch
from torch import Tensor

from .rotation import add_second_moment_


STRENGTHS = (10.0, 3.0, 1.0, 3e-1, 1e-1, 3e-2, 1e-2, 1e-3)
"""
Strengths of the ridge that are tried until they get worse, in units of each input's own sum of squares. Weaker ones
would be no match for the rounding of products in float32, where tokens are all alike.
"""

ROUNDING = 1e-6
"""Share of the mean energy that the ridge supposes of every input: bfloat16's rounding errors have as much."""

HELD_OUT = 8
"""One token in so many is held out to choose the strength by."""

JUDGED_OUTPUTS = 64
"""So many outputs, evenly spaced, are enough to choose the strength by."""

TOKENS_AT_ONCE = 1024
"""Products of so many tokens are rounded, and then summed in float64: in bfloat16, roundings are to cancel out."""

COMPENSATION = 1e-3
"""Strength of the ridge where inputs that are deleted are expressed by those that stay."""

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
        # First of the tokens that are fitted, second of those that are held out.
        self._gram = torch.zeros(2, inputs, inputs, dtype=torch.float64, device=device)
        self._cross = torch.zeros(2, inputs, outputs, dtype=torch.float64, device=device)

    def add(self, a: Tensor, y: Tensor) -> None:
        """
        Adds the products of some tokens, of which the last are held out.

        Those of inputs with outputs are taken in the tokens' dtype, those of inputs with each other in float32 at
        least: rounded, they would not be positive definite.

        Args:
            a (`torch.Tensor` of shape `(tokens, inputs)`), y (`torch.Tensor` of shape `(tokens, outputs)`): one dtype.
        """
        fitted = len(a) - len(a) // HELD_OUT
        for part, tokens in enumerate((slice(fitted), slice(fitted, None))):
            add_second_moment_(self._gram[part], a[tokens])
            for inputs, outputs in zip(a[tokens].split(TOKENS_AT_ONCE), y[tokens].split(TOKENS_AT_ONCE), strict=True):
                self._cross[part] += inputs.T @ outputs

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        """All that is kept of the tokens: regressions of other tokens are joined by adding theirs, in place."""
        return self._gram, self._cross

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
        strength = self._best_strength(prior)
        if strength is None:
            return prior
        gram = self._gram.sum(0)
        return prior + ridge(gram, self._cross.sum(0) - gram @ prior, strength)

    def _best_strength(self, prior):
        outputs = prior.shape[1]
        judged = torch.arange(0, outputs, max(1, outputs // JUDGED_OUTPUTS), device=prior.device)
        (gram, judge), prior = self._gram, prior[:, judged]
        missing, wanted = self._cross[..., judged] - self._gram @ prior
        best, best_loss = None, 0.0
        for strength in STRENGTHS:
            change = ridge(gram, missing, strength)
            loss = ((judge @ change - 2 * wanted) * change).sum().item()
            if loss >= best_loss:
                break
            best, best_loss = strength, loss
        return best

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
        gram = self._gram.sum(0)
        fixed = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
        fixed[candidates] = False
        stays = torch.arange(len(gram), device=gram.device)
        for done in range(ROUNDS):
            inverse = torch.cholesky_inverse(_cholesky(gram[stays][:, stays], COMPENSATION))
            cost = weight.square().sum(1) / inverse.diagonal()
            cost[fixed[stays]] = float("inf")
            cheapest = cost.argsort()[: count * (done + 1) // ROUNDS - count * done // ROUNDS]
            left = torch.ones_like(stays, dtype=torch.bool)
            left[cheapest] = False
            # Of what the deleted ones did, the others take over what they can.
            kept = stays[left]
            weight = ridge(gram[kept][:, kept], gram[kept][:, stays] @ weight, COMPENSATION)
            stays = kept
        return weight, stays


def ridge(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    """
    Solves `(gram + strength · diag(gram)) W = cross`, on the ridge's diagonal at least `ROUNDING` of its mean.

    Args:
        gram (`torch.Tensor` of shape `(n, n)`), cross (`torch.Tensor` of shape `(n, k)`): float64.
        strength (`float`): more than 0.
    """
    return torch.cholesky_solve(cross, _cholesky(gram, strength))


def _cholesky(gram, strength):
    damped = gram.clone()
    energies = gram.diagonal()
    damped.diagonal().add_(strength * energies.clamp_min(ROUNDING * energies.mean()) + torch.finfo(gram.dtype).tiny)
    return torch.linalg.cholesky(damped)
