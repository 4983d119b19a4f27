"""
The ridge of a regression, and the choice of its strength.

G is Σ aᵀa over the tokens, n² its diagonal ([`energies`]). In units of each input's norm n, numbers are alike enough
to be factorised in float32, and the ridge `s diag(n²)` is s times the identity. Products with G need no such units.

References:
    - Saad (2003), Iterative methods for sparse linear systems, section 6.4: the method of [`solutions_nearby`].
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from .products import Products


STRENGTHS = (10.0, 3.0, 1.0, 3e-1, 1e-1, 3e-2, 1e-2, 1e-3)
"""
Strengths of the ridge among which [`best_strength`] chooses. Where all tokens are alike, a weaker ridge would vanish
in the rounding errors of float32 products.
"""

FIRST_STRENGTH = 1.0
"""Strength at which the search for the best one starts."""

REACH = 2
"""Number of strengths to either side of the first one that share its factorisation."""

KRYLOV_STEPS = 6
"""
Number of solutions with one factorisation from which those of other strengths are put together. The losses of
strengths within [`REACH`] then come out right to a hundredth or better.
"""

ROUNDING = 1e-6
"""Least energy of an input in the ridge, as a share of the mean: bfloat16's rounding errors have as much."""

JUDGED_OUTPUTS = 64
"""Number of outputs, evenly spaced, on which strengths are compared."""


def best_strength(products: Sequence[Products], prior: Tensor) -> float | None:
    """
    Chooses the strength of the ridge that serves the held-out tokens best: those of the worst group, if there are
    several.

    For each strength s, `change = (G₀ + s diag(n²))⁻¹ (Σ₀ aᵀy - G₀ prior)` comes from the tokens that are fitted
    (index 0). Over held-out tokens (index i), the squared error of `prior + change` less that of the prior is
    `tr(changeᵀ Gᵢ change) - 2 tr(changeᵀ (Σᵢ aᵀy - Gᵢ prior))`.

    Args:
        products (sequence of [`Products`]): fitted, and held out of each group.
        prior (`torch.Tensor` of shape `(n, k)`, float64): the weights that the ridge leads to.

    Returns:
        `float` or `None`: one of [`STRENGTHS`]; `None` if the prior is better than the best of them.
    """
    judged = torch.arange(0, prior.shape[1], max(1, prior.shape[1] // JUDGED_OUTPUTS), device=prior.device)
    start, (fitted, *held_out) = prior[:, judged], products
    unit = energies(fitted).sqrt()

    def missing_of(each):
        return each.cross(judged) - each.gram_times(start.to(each.values.dtype))

    missing = (missing_of(fitted) / unit[:, None]).float()
    # Of a group with very few tokens none is held out.
    goals = [(each, missing_of(each)) for each in held_out if each.diagonal().any()]
    first = best = STRENGTHS.index(FIRST_STRENGTH)

    @cache
    def changes_near(index):
        return solutions_nearby(factorise(fitted, unit, STRENGTHS[index]), missing)

    @cache
    def loss(index):
        nearby = first if abs(index - first) <= REACH else index
        change = changes_near(nearby)(STRENGTHS[index] - STRENGTHS[nearby]) / unit[:, None]
        losses = []
        for each, goal in goals:
            step = change.to(goal.dtype)
            losses.append(((each.gram_times(step) - 2 * goal) * step).sum().item())
        return max(losses, default=0.0)

    for step in (-1, 1):
        while 0 <= best + step < len(STRENGTHS) and loss(best + step) < loss(best):
            best += step
    return STRENGTHS[best] if loss(best) < 0 else None


def solutions_nearby(factor: Tensor, right: Tensor) -> Callable[[float], Tensor]:
    """
    Solves `(A + d) X = right`, where d stands for d times the identity, for any small d with one factorisation, of A.

    `X = A⁻¹ (1 + d A⁻¹)⁻¹ right`. For each column, `(1 + d A⁻¹)⁻¹ right` is found among the combinations of right,
    A⁻¹ right, A⁻² right and so on (a Krylov space, which is the same for every d).

    Args:
        factor (`torch.Tensor` of shape `(n, n)`, float32): Cholesky's, of A.
        right (`torch.Tensor` of shape `(n, k)`, float32): the right sides.

    Returns:
        `Callable`: computes X `(n, k)` for d.
    """
    (inputs, outputs), steps = right.shape, min(KRYLOV_STEPS, len(right))
    basis, images = right.new_zeros(2, outputs, steps, inputs)  # orthonormal rows, and their products with A⁻¹
    length = right.norm(dim=0)
    rows = nn.functional.normalize(right.T)
    for step in range(steps):
        basis[:, step], images[:, step] = rows, solve_factored(factor, rows.T).T
        rows = images[:, step]
        for _ in range(2):  # Once would leave too much of the rounding errors.
            rows = nn.functional.normalize(rows - ((basis @ rows[..., None]).mT @ basis)[:, 0])
    inverse, identity = basis @ images.mT, torch.eye(steps, device=right.device)

    def solution(shift):
        parts = torch.linalg.solve(identity + shift * inverse, length[:, None] * identity[0])
        return (parts[:, None] @ images)[:, 0].T

    return solution


def energies(products: Products) -> Tensor:
    """Returns each input's sum of squares `(n,)`, the diagonal of G, raised to at least [`ROUNDING`] of the mean."""
    own = products.diagonal()
    return own.clamp_min(ROUNDING * own.mean()) + torch.finfo(own.dtype).tiny


def factorise(products: Products, unit: Tensor, strength: float) -> Tensor:
    """Returns Cholesky's factor of `G + s diag(n²)` in units n of the inputs, float32."""
    damped = products.upper_in_units(unit)
    damped.diagonal().add_(strength)
    # In its place: LAPACK goes down the columns, and reads the lower half of what it is given.
    return torch.linalg.cholesky(damped.mT, out=damped.mT)


def solve_factored(factor: Tensor, right: Tensor) -> Tensor:
    """Solves `L Lᵀ X = right` for X `(n, k)`, by Cholesky's factor L `(n, n)`, which is not copied."""
    found = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, found, upper=True)
