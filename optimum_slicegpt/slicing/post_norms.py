"""
Norms behind the blocks: a block adds `g ∘ y / r` to the stream, y what its writers put out, r its root mean square.

The gain g acts along the dense dimensions, so no rotation commutes with it. The sliced block adds `g' ∘ y' / r'` along
k axes that lie near to k of the dimensions, where g' is about g. Two things are wanted of y': that `g' ∘ y' / r` is
what the sliced stream lacks, û, and that r' is r, which may depend on dimensions that g all but mutes. So each y'_j
follows both `û_j r / g'_j` and y along its axis, `c (Aᵀ y)_j`, c the scale of the stream. A deviation δ from the first
costs `(g'_j δ / r)²`, one from the second `λ_j (δ / r)²`, with λ_j such that this is what the norm's output loses by a
wrong divisor if deviations are independent: `λ_j = E[(Aᵀ y)_j² / r²] · E[|g ∘ y / r|²] / D²`. With `s² = g'² + λ`, the
regression is of `s y'` on its goal `(g' û r + λ c Aᵀ y) / s`, and 1 / r multiplies both.

What is left of the error in r' is taken out by g': `r'² = Σ ξ_j y'_j² / k` is linear in ξ, for which the rows of the
writers are multiplied by √ξ and g' is divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..linalg.moments import root_mean_square
from ..modeling.weights import eps_of


if TYPE_CHECKING:
    from .pairs import BlockPair
    from .run import Run
    from .state import Basis
    from .streams import DenseStream


LEAST_ENERGY = 1e-6
"""Least energy of a dimension in the weights λ, as a share of the mean."""


@dataclass(frozen=True)
class PostNorm:
    """
    The norm behind a block of the sliced model, as it is before anything is fitted.

    Args:
        eps (`float`): what the norm adds to the mean square.
        axes (`torch.Tensor` of shape `(D, k)`, float64): A c, of the site after the block.
        gain (`torch.Tensor` of shape `(k,)`, float64): g', the size of g along each axis.
        divisor_weight (`torch.Tensor` of shape `(k,)`, float64): λ.
        write (`torch.Tensor` of shape `(D, k)`, float64): by which the block's writers are multiplied.
    """

    eps: float
    axes: Tensor
    gain: Tensor
    divisor_weight: Tensor
    write: Tensor

    @classmethod
    def behind(cls, block: BlockPair, there: Basis, x: DenseStream) -> PostNorm | None:
        """
        Finds what the norm behind a block becomes. Along all D dimensions, it is the dense norm.

        Args:
            block ([`BlockPair`]): the block.
            there ([`Basis`]): of the site after it.
            x ([`DenseStream`]): after the block.

        Returns:
            [`PostNorm`] or `None`: `None` if no norm is behind the block.
        """
        if block.dense.post_norm is None:
            return None
        gain, axes = block.dense.post_gain.to(there.axes), there.axes
        along = (gain[:, None] * axes).norm(dim=0) * (gain @ axes.square()).sign()
        energy, scaled = x.outputs.energy + LEAST_ENERGY, there.scale * axes
        weight = (energy @ axes.square()) * (energy @ gain.square()) / len(gain) ** 2
        write = (along * gain[:, None] * there.write + weight * scaled) / (along.square() + weight)
        return cls(eps_of(block.dense.post_norm, block.dense.family), scaled, along, weight, write)

    @property
    def scale(self) -> Tensor:
        """s `(k,)`, which multiplies what the writers put out in the regression."""
        return (self.gain.square() + self.divisor_weight).sqrt()

    def divisor(self, outputs: Tensor) -> Tensor:
        """Returns r `(tokens, 1)`, by which the dense norm divides its inputs `(tokens, D)`."""
        return root_mean_square(outputs, self.eps)

    def goal(self, lacking: Tensor, weight: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        """
        Returns what `s y'` is fitted to.

        Args:
            lacking (`torch.Tensor` of shape `(tokens, k)`): û, what the sliced stream lacks.
            weight (`torch.Tensor` of shape `(tokens, 1)`): by which errors of the stream are multiplied.
            outputs (`torch.Tensor` of shape `(tokens, D)`): y of the dense block.

        Returns:
            `dict`: the goal `y` `(tokens, k)`, and the `weight` `(tokens, 1)` by which its errors are multiplied.
        """
        divisor = self.divisor(outputs)
        follow, keep = ((each / self.scale).to(lacking) for each in (self.gain, self.divisor_weight))
        goal = follow * lacking * divisor + keep * (outputs.to(lacking) @ self.axes.to(lacking))
        return {"y": goal, "weight": weight / divisor}


def set_post_gain(run: Run, block: BlockPair, gain: Tensor) -> None:
    """
    Sets the gain of the norm behind a block of the sliced model.

    Args:
        run ([`run.Run`]): whose sliced model it is.
        block ([`BlockPair`]): has a norm behind it.
        gain (`torch.Tensor` of shape `(k,)`, float64): what the norm multiplies by.
    """
    stored = gain - run.dense.family.gain_offset
    block.sliced.post_norm.weight = nn.Parameter(stored.to(run.at_rest))
