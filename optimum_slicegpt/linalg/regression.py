"""
Linear regression `y ≈ a W` from sums over tokens: a ridge towards a prior, and the deletion of inputs.

With G = Σ aᵀa over the tokens, n² its diagonal ([`energies`]) and s the strength of the ridge,

- [`LeastSquares.solve`] minimises `|y - a W|² + s |diag(n) (W - prior)|²`, so that
  `W = prior + (G + s diag(n²))⁻¹ (Σ aᵀy - G prior)`;
- [`LeastSquares.delete_inputs`] deletes the inputs q of least `|W_q|² / (H⁻¹)_qq`, H = G + s diag(n²).

References:
    - Hoerl and Kennard (1970), Ridge regression: biased estimation for nonorthogonal problems.
    - Lee and Seung (2001), Algorithms for non-negative matrix factorization.
    - Hassibi and Stork (1993), Second order derivatives for network pruning: Optimal Brain Surgeon.
"""

import torch
from torch import Tensor

from .moments import wide
from .products import Products, number_of_products
from .ridge import best_strength, energies, factorise, solve_factored


TOKENS_AT_ONCE = 4096
"""Number of tokens that are collected before their products are taken."""

COMPENSATION = 0.2
"""
Strength of the ridge where the remaining inputs compensate for the deleted ones. Measured on SmolLM2: strengths from
0.03 to 0.3 do about as well; 0.001 is worse on text of the calibration's kind, and far worse on other kinds.
"""

POSITIVE_STEPS = 500
"""Number of steps towards positive weights. Twice as many change next to nothing."""

ROUNDS = 2
"""Number of rounds in which inputs are deleted. Each round computes the costs anew."""


def bytes_of_sums(inputs: int, outputs: int, groups: int = 1, dtype: torch.dtype = torch.float32) -> int:
    """Computes the bytes of a regression's sums; arguments are those of [`LeastSquares`]."""
    return (8 + groups * dtype.itemsize) * number_of_products(inputs, outputs)


def bytes_needed(inputs: int, outputs: int, groups: int = 1, dtype: torch.dtype = torch.float32) -> int:
    """
    Computes the bytes of a regression at its peak, which is while the strength of the ridge is chosen, while weights
    are solved for, or while inputs are deleted; arguments are those of [`LeastSquares`].
    """
    sums, square, weights = number_of_products(inputs, outputs), 4 * inputs**2, 8 * inputs * outputs
    # Beside a factor: the prior; weights and what is missing; an inverse, its parts, and weights.
    return max(
        bytes_of_sums(inputs, outputs, groups, dtype) + square + weights,
        8 * sums + square + 4 * weights,
        3 * square + 3 * weights,
    )


class LeastSquares:
    """
    A linear regression `y ≈ a W`, which keeps sums over tokens, see [`Products`], and no tokens.

    Args:
        inputs (`int`): length of a.
        outputs (`int`): length of y.
        device (`torch.device`): holds the sums, and solves. Tokens may come from another one.
        groups (`int`, defaults to 1): kinds of tokens. What serves the worst of them is chosen.
        dtype (`torch.dtype`, defaults to float32): of sums over held-out tokens; those over the others are in float64.

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

    def __init__(
        self,
        inputs: int,
        outputs: int,
        device: torch.device,
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
    ):
        # Index 0 has sums over the tokens that are fitted, the others over the held-out tokens of each group.
        self.num_inputs, self.num_outputs, self.device = inputs, outputs, device
        self._products = [Products(inputs, outputs, each, device) for each in [torch.float64] + groups * [dtype]]
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
            self._collected[index] = a.new_empty(
                TOKENS_AT_ONCE, self.num_inputs + self.num_outputs, dtype=wide(a.dtype)
            )
        place = self._collected[index][self._counts[index] :][: len(a)]
        for part, columns in ((a, slice(None, self.num_inputs)), (y, slice(self.num_inputs, None))):
            torch.mul(part.to(wide(part.dtype)), weight, out=place[:, columns])
        self._counts[index] += len(a)

    def _add_collected(self, index):
        if self._counts[index]:
            self._products[index].add_tokens_(self._collected[index][: self._counts[index]])
        self._counts[index] = 0

    def finish(self) -> list[Products]:
        """
        Adds what is collected, and returns the sums: over the tokens that are fitted, and over the held-out ones of
        each group.
        """
        for index in range(len(self._products)):
            self._add_collected(index)
            self._collected[index] = None
        return self._products

    def solve(self, prior: Tensor) -> Tensor:
        """
        Solves the ridge regression: the W that minimises `|y - a W|² + s |diag(n) (W - prior)|²` over all tokens.

        n² are the inputs' [`energies`], so the ridge does not depend on the unit of an input, and the weights of
        inputs of little energy are as free to change as all others. [`best_strength`] chooses the strength s. Where no
        strength serves the held-out tokens better than the prior, the prior is returned, so that too few tokens cannot
        do harm. Afterwards, the sums tell held-out tokens apart no more.

        Args:
            prior (`torch.Tensor` of shape `(inputs, outputs)`, float64): the weights that the ridge leads to.

        Returns:
            `torch.Tensor` of shape `(inputs, outputs)`, float64.
        """
        strength = best_strength(self.finish(), prior)
        if strength is None:
            return prior
        products = self._over_all_tokens()
        unit = energies(products).sqrt()
        missing = ((products.cross() - products.gram_times(prior)) / unit[:, None]).float()
        change = solve_factored(factorise(products, unit, strength), missing)
        return prior + change.double() / unit[:, None]

    def solve_positive(self) -> Tensor:
        """
        Solves `y ≈ a w` for positive w, where neither inputs nor the one output are negative, by a ridge towards ones.

        A step takes w to `w (Σ aᵀy + s n²) / (G w + s n² w)`, which lowers the error (Lee and Seung, 2001).

        Returns:
            `torch.Tensor` of shape `(inputs,)`, float64: ones where no strength serves the held-out tokens better.
        """
        weight = torch.ones(self.num_inputs, 1, dtype=torch.float64, device=self.device)
        strength = best_strength(self.finish(), weight)
        if strength is None:
            return weight.squeeze(1)
        products = self._over_all_tokens()
        gram, wanted, pull = products.gram(), products.cross(), strength * energies(products)[:, None]
        for _ in range(POSITIVE_STEPS):
            weight = weight * (wanted + pull) / (gram @ weight + pull * weight)
        return weight.squeeze(1)

    def delete_inputs(self, candidates: slice, count: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        """
        Deletes the inputs that cost least when the weights of all others compensate (Optimal Brain Surgeon).

        H = G + s diag(n²) is the Hessian of the squared error, halved, with s = [`COMPENSATION`]. Once the inputs d
        are deleted, the rest, r, has

        - `W_r - (H⁻¹)_rd ((H⁻¹)_dd)⁻¹ W_d`, the weights that compensate best;
        - `(H⁻¹)_rr - (H⁻¹)_rd ((H⁻¹)_dd)⁻¹ (H⁻¹)_dr`, the inverse Hessian of these inputs alone.

        To delete input q as well costs `|W_q|² / (H⁻¹)_qq`. Each of [`ROUNDS`] deletes the cheapest ones. The sums are
        freed, so this comes last.

        Args:
            candidates (`slice`): inputs that may be deleted; the others stay.
            count (`int`): number of inputs to delete.
            weight (`torch.Tensor` of shape `(inputs, outputs)`, float64): W.

        Returns:
            `tuple`: weights of the remaining inputs, `(inputs - count, outputs)`, and their indices, ascending.
        """
        products, self._products = self._over_all_tokens(), []
        unit = energies(products).sqrt()
        factor = factorise(products, unit, COMPENSATION)
        del products
        inverse = torch.cholesky_inverse(factor)
        del factor
        scaled = weight * unit[:, None]
        free = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        free[candidates] = True
        remains, diagonal, left = torch.ones_like(free), inverse.diagonal(), scaled
        for done in range(1, ROUNDS + 1):
            cost = torch.full_like(unit, float("inf"))
            cost[remains] = left.square().sum(1) / diagonal
            cost[~free] = float("inf")
            deleting = count * done // ROUNDS - count * (done - 1) // ROUNDS
            remains[cost.argsort()[:deleting]] = False
            deleted, rest = (~remains).nonzero().squeeze(1), remains.nonzero().squeeze(1)
            inverse_dr = inverse[deleted[:, None], rest]
            compensation = torch.linalg.solve(inverse[deleted[:, None], deleted], inverse_dr).T
            left = scaled[rest] - (compensation @ scaled[deleted].float()).double()
            diagonal = inverse.diagonal()[rest] - (compensation * inverse_dr.T).sum(1)
        return left / unit[rest, None], rest

    def _over_all_tokens(self):
        """Adds the sums over held-out tokens to the others, and frees them."""
        products = self.finish()
        while len(products) > 1:
            products[0].add_(products.pop())
        return products[0]


def token_stride(inputs: int, most_inputs: int) -> int:
    """
    Computes n, where a regression takes every n-th token. The largest regression takes all tokens; a smaller one takes
    fewer, but at least as many for each of its inputs.

    Args:
        inputs (`int`): number of inputs of the regression.
        most_inputs (`int`): number of inputs of the largest regression.
    """
    return max(1, most_inputs // inputs)
