"""
Linear regression `y ≈ a W` from sums over tokens: a ridge towards a prior, and the deletion of inputs.

With G = Σ aᵀa over the tokens, n² its diagonal ([`energies`]) and s the strength of the ridge,

- [`LeastSquares.solve`] minimises `|y - a W|² + s |diag(n) (W - prior)|²`, so that
  `W = prior + (G + s diag(n²))⁻¹ (Σ aᵀy - G prior)`;
- [`LeastSquares.delete_inputs`] deletes the inputs q of least `|W_q|² / (H⁻¹)_qq`, H = G + s diag(n²).

References:
    - Hoerl and Kennard (1970), Ridge regression: biased estimation for nonorthogonal problems.
    - Hassibi and Stork (1993), Second order derivatives for network pruning: Optimal Brain Surgeon.
"""

from functools import cache

import torch
from torch import Tensor

from .moments import add_products_, mirror_, wide


STRENGTHS = (10.0, 3.0, 1.0, 3e-1, 1e-1, 3e-2, 1e-2, 1e-3)
"""
Strengths of the ridge among which [`best_strength`] chooses. Where all tokens are alike, a weaker ridge would vanish
in the rounding errors of float32 products.
"""

FIRST_STRENGTH = 0.3
"""Strength at which the search for the best one starts."""

ROUNDING = 1e-6
"""Least energy of an input in the ridge, as a share of the mean: bfloat16's rounding errors have as much."""

JUDGED_OUTPUTS = 64
"""Number of outputs, evenly spaced, on which strengths are compared."""

TOKENS_AT_ONCE = 4096
"""Number of tokens that are collected before their products are taken."""

COMPENSATION = 0.2
"""
Strength of the ridge where the remaining inputs compensate for the deleted ones. Measured on SmolLM2: strengths from
0.03 to 0.3 do about as well; 0.001 is worse on text of the calibration's kind, and far worse on other kinds.
"""

ROUNDS = 2
"""Number of rounds in which inputs are deleted. Each round computes the costs anew."""


class LeastSquares:
    """
    A linear regression `y ≈ a W`, which keeps sums over tokens in float64, and no tokens.

    Args:
        inputs (`int`): length of a.
        outputs (`int`): length of y.
        device (`torch.device`): holds the sums.
        groups (`int`, defaults to 1): kinds of tokens. What serves the worst of them is chosen.

    Examples:
        >>> a = torch.randn(800, 3, generator=torch.Generator().manual_seed(0))  # 800 tokens, 3 inputs
        >>> weight = torch.tensor([[1.0, 0.0], [0.1, 0.1], [0.0, 2.0]], dtype=torch.float64)  # 2 outputs
        >>> fit = LeastSquares(inputs=3, outputs=2, device=a.device)
        >>> fit.add(a, a @ weight.float(), held_out=torch.arange(800) % 8 == 7)
        >>> found = fit.solve(prior=torch.zeros(3, 2, dtype=torch.float64))
        >>> found.shape, torch.allclose(found, weight, atol=0.01)
        (torch.Size([3, 2]), True)
        >>> left, remaining = fit.delete_inputs(slice(0, 3), 1, found)  # the input of the smallest weight
        >>> left.shape, remaining.tolist()
        (torch.Size([2, 2]), [0, 2])
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device, groups: int = 1):
        # Index 0 has sums over the tokens that are fitted, the others over the held-out tokens of each group. Each
        # holds the products of inputs with inputs and, behind them, of inputs with outputs.
        self.num_inputs = inputs
        self._sums = torch.zeros(1 + groups, inputs, inputs + outputs, dtype=torch.float64, device=device)
        self._collected, self._counts = [None] * (1 + groups), [0] * (1 + groups)

    def add(self, a: Tensor, y: Tensor, *, held_out: Tensor, weight: Tensor | float = 1.0, group: int = 0) -> None:
        """
        Adds tokens of a group.

        Args:
            a (`torch.Tensor` of shape `(tokens, inputs)`): products are taken in its dtype, or in float32 of float16.
            y (`torch.Tensor` of shape `(tokens, outputs)`): in any dtype.
            held_out (`torch.Tensor` of shape `(tokens,)`, bool, on the CPU):
                tokens that are not fitted, but choose the strength of the ridge.
            weight (`torch.Tensor` of shape `(tokens, 1)` or `float`): multiplies a and y of each token.
            group (`int`): kind of the tokens.
        """
        # Tokens are cut where they begin or cease to be held out: to pick them would move their numbers to the device.
        kinds, counts = held_out.unique_consecutive(return_counts=True)
        counts = counts.tolist()
        weights = [weight] * len(counts) if isinstance(weight, float) else weight.split(counts)
        for kind, *parts, factor in zip(kinds.tolist(), a.split(counts), y.split(counts), weights, strict=True):
            for start in range(0, len(parts[0]), TOKENS_AT_ONCE):
                chosen = slice(start, start + TOKENS_AT_ONCE)
                factors = factor if isinstance(factor, float) else factor[chosen]
                self._collect((1 + group) * kind, *(part[chosen] for part in parts), factors)

    def _collect(self, index, a, y, weight):
        """Writes at most [`TOKENS_AT_ONCE`] tokens into a buffer, whose products are added once it is full."""
        if self._counts[index] + len(a) > TOKENS_AT_ONCE:
            self._add_collected(index)
        if self._collected[index] is None:
            self._collected[index] = a.new_empty(TOKENS_AT_ONCE, self._sums.shape[-1], dtype=wide(a.dtype))
        place = self._collected[index][self._counts[index] :][: len(a)]
        for part, columns in ((a, slice(None, self.num_inputs)), (y, slice(self.num_inputs, None))):
            torch.mul(part.to(wide(part.dtype)), weight, out=place[:, columns])
        self._counts[index] += len(a)

    def _add_collected(self, index):
        if self._counts[index]:
            add_products_(self._sums[index], self._collected[index][: self._counts[index]])
        self._counts[index] = 0

    @property
    def sums(self) -> Tensor:
        """
        Sums `(1 + groups, inputs, inputs + outputs)`. To add the tokens of another regression, add its sums in place.
        """
        for index in range(len(self._sums)):
            self._add_collected(index)
        return self._sums

    def gram_and_cross(self) -> tuple[Tensor, Tensor]:
        """
        Returns Σ aᵀa and Σ aᵀy, over the tokens that are fitted and over the held-out tokens of each group.

        Returns:
            `tuple`: `(1 + groups, inputs, inputs)` and `(1 + groups, inputs, outputs)`, float64: views of the sums.
        """
        for total in self.sums:
            mirror_(total)
        inputs = self._sums.shape[1]
        return self._sums[..., :inputs], self._sums[..., inputs:]

    def solve(self, prior: Tensor) -> Tensor:
        """
        Solves the ridge regression: the W that minimises `|y - a W|² + s |diag(n) (W - prior)|²` over all tokens.

        n² are the inputs' [`energies`], so the ridge does not depend on the unit of an input, and the weights of
        inputs of little energy are as free to change as all others. [`best_strength`] chooses the strength s. Where no
        strength serves the held-out tokens better than the prior, the prior is returned, so that too few tokens cannot
        do harm.

        Args:
            prior (`torch.Tensor` of shape `(inputs, outputs)`, float64): the weights that the ridge leads to.

        Returns:
            `torch.Tensor` of shape `(inputs, outputs)`, float64.
        """
        gram, cross = self.gram_and_cross()
        strength = best_strength(gram, cross, prior)
        if strength is None:
            return prior
        gram = gram.sum(0)
        return prior + ridge(gram, cross.sum(0) - gram @ prior, strength)

    def delete_inputs(self, candidates: slice, count: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        """
        Deletes the inputs that cost least when the weights of all others compensate (Optimal Brain Surgeon).

        H = G + s diag(n²) is the Hessian of the squared error, halved, with s = [`COMPENSATION`]. To delete input q
        costs `|W_q|² / (H⁻¹)_qq`. Each of [`ROUNDS`] deletes a set d of the cheapest inputs, and updates the rest r:

        - `W_r -= (H⁻¹)_rd ((H⁻¹)_dd)⁻¹ W_d`, the weights that compensate best for d;
        - `(H⁻¹)_rr -= (H⁻¹)_rd ((H⁻¹)_dd)⁻¹ (H⁻¹)_dr`, the inverse Hessian of the remaining inputs alone.

        Args:
            candidates (`slice`): inputs that may be deleted; the others stay.
            count (`int`): number of inputs to delete.
            weight (`torch.Tensor` of shape `(inputs, outputs)`, float64): W.

        Returns:
            `tuple`: weights of the remaining inputs, `(inputs - count, outputs)`, and their indices, ascending.
        """
        inverse = torch.cholesky_inverse(_cholesky(self.gram_and_cross()[0].sum(0), COMPENSATION))
        remaining = torch.arange(len(inverse), device=inverse.device)
        fixed = torch.ones_like(remaining, dtype=torch.bool)
        fixed[candidates] = False
        for done in range(ROUNDS):
            cost = weight.square().sum(1) / inverse.diagonal()
            cost[fixed[remaining]] = float("inf")
            order = cost.argsort()
            deleted, rest = order.tensor_split([count * (done + 1) // ROUNDS - count * done // ROUNDS])
            rest = rest.sort().values
            inverse_dr = inverse[deleted][:, rest]
            compensation = torch.linalg.solve(inverse[deleted][:, deleted], inverse_dr).T
            weight = weight[rest] - compensation @ weight[deleted]
            inverse = inverse[rest[:, None], rest]
            inverse -= compensation @ inverse_dr
            remaining = remaining[rest]
        return weight, remaining


def token_stride(inputs: int, most_inputs: int) -> int:
    """
    Computes n, where a regression takes every n-th token. The largest regression takes all tokens; a smaller one takes
    fewer, but at least as many for each of its inputs.

    Args:
        inputs (`int`): number of inputs of the regression.
        most_inputs (`int`): number of inputs of the largest regression.
    """
    return max(1, most_inputs // inputs)


def best_strength(gram: Tensor, cross: Tensor, prior: Tensor) -> float | None:
    """
    Chooses the strength of the ridge that serves the held-out tokens best: those of the worst group, if there are
    several.

    For each strength s, `change = (G₀ + s diag(n²))⁻¹ (Σ₀ aᵀy - G₀ prior)` comes from the tokens that are fitted
    (index 0). Over held-out tokens (index i), the squared error of `prior + change` less that of the prior is
    `tr(changeᵀ Gᵢ change) - 2 tr(changeᵀ (Σᵢ aᵀy - Gᵢ prior))`.

    Args:
        gram (`torch.Tensor` of shape `(1 + groups, n, n)`, float64): Σ aᵀa, fitted and held out.
        cross (`torch.Tensor` of shape `(1 + groups, n, k)`, float64): Σ aᵀy, fitted and held out.
        prior (`torch.Tensor` of shape `(n, k)`, float64): the weights that the ridge leads to.

    Returns:
        `float` or `None`: one of [`STRENGTHS`]; `None` if the prior is better than the best of them.
    """
    judged = torch.arange(0, prior.shape[1], max(1, prior.shape[1] // JUDGED_OUTPUTS), device=prior.device)
    # In units of each input's norm, numbers are alike enough for float32.
    unit = energies(gram[0]).sqrt()[:, None]
    missing, *missing_held_out = ((cross[..., judged] - gram @ prior[:, judged]) / unit).float()
    gram, *gram_held_out = ((each / unit / unit.T).float() for each in gram)
    # Of a group with very few tokens none is held out.
    pairs = [pair for pair in zip(gram_held_out, missing_held_out, strict=True) if pair[0].any()]

    @cache
    def loss(index):
        damped = gram.clone()
        damped.diagonal().add_(STRENGTHS[index])
        change = torch.cholesky_solve(missing, torch.linalg.cholesky(damped))
        losses = (((held_out @ change - 2 * wanted) * change).sum().item() for held_out, wanted in pairs)
        return max(losses, default=0.0)

    best = STRENGTHS.index(FIRST_STRENGTH)
    for step in (-1, 1):
        while 0 <= best + step < len(STRENGTHS) and loss(best + step) < loss(best):
            best += step
    return STRENGTHS[best] if loss(best) < 0 else None


def ridge(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    """
    Solves `(G + s diag(n²)) W = cross` for W, n² the inputs' [`energies`].

    Args:
        gram (`torch.Tensor` of shape `(n, n)`, float64): G.
        cross (`torch.Tensor` of shape `(n, k)`, float64): the right side.
        strength (`float`): s, more than 0.

    Returns:
        `torch.Tensor` of shape `(n, k)`, float64.
    """
    return torch.cholesky_solve(cross, _cholesky(gram, strength))


def energies(gram: Tensor) -> Tensor:
    """Returns each input's sum of squares `(n,)`, the diagonal of G, raised to at least [`ROUNDING`] of the mean."""
    own = gram.diagonal()
    return own.clamp_min(ROUNDING * own.mean()) + torch.finfo(gram.dtype).tiny


def _cholesky(gram, strength):
    """Factorises `G + s diag(n²)`."""
    damped = gram.clone()
    damped.diagonal().add_(strength * energies(gram))
    return torch.linalg.cholesky(damped)
