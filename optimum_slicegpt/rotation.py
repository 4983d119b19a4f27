"""Pure mathematics of rotations, on tensors. Imports torch and nothing of ours."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor


ROWS_AT_ONCE = 2048
"""Rows composed at a time: bounds the float64 copies of a large vocabulary to some 100 MB."""

PARTS = 4
"""Second moments are taken in so many strips, each from the diagonal on: 10 of 16 blocks of the whole product."""


def add_second_moment_(total: Tensor, x: Tensor, factor: Tensor | None = None) -> None:
    """
    Adds xᵀx to a running sum, but for what [`mirror_`] fills in once all is added.

    The product of one batch is taken in float32 at least, the sum over batches in float64: the eigen-decomposition of
    sums kept in float32 costs perplexity (SliceGPT, table 4).

    Args:
        total (`torch.Tensor` of shape `(D, D)`, float64): the running sum, changed in place.
        x (`torch.Tensor` of shape `(tokens, D)`): the signal at a site.
        factor (`torch.Tensor` of shape `(tokens, 1)`, *optional*): by which every token counts in x.
    """
    if factor is not None:  # float16 might not hold it
        x = (x * factor).to(torch.bfloat16 if x.dtype == torch.bfloat16 else factor.dtype)
    add_products_(total, x)


def add_products_(total: Tensor, x: Tensor) -> None:
    """
    Adds the products of the first columns of x with all to a running sum, but for those that [`mirror_`] finds again.

    Args:
        total (`torch.Tensor` of shape `(rows, columns)`, float64): the running sum, changed in place.
        x (`torch.Tensor` of shape `(tokens, columns)`): products are those of its dtype, in float32 at least.
    """
    with float32_products_of(x.dtype):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for start, stop in strips(len(total)):
            total[start:stop, start:] += x[:, start:stop].T @ x[:, start:]


def mirror_(total: Tensor) -> None:
    """Fills in, below the diagonal `(rows, columns)`, what repeats what lies above it."""
    for start, stop in strips(len(total)):
        total[stop:, start:stop] = total[start:stop, stop : len(total)].T


def strips(rows: int) -> Iterator[tuple[int, int]]:
    """Where each of [`PARTS`] strips starts and ends."""
    return pairwise(rows * part // PARTS for part in range(PARTS + 1))


@contextmanager
def float32_products_of(dtype: torch.dtype) -> Iterator[None]:
    """
    For the time of a computation, products of float32 matrices need be right for values that `dtype` can hold.

    Where these are bfloat16's, a processor that multiplies them into float32 sums is twice as fast, and loses nothing.
    """
    backend = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and later
    if dtype != torch.bfloat16 or backend is None:
        yield
        return
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


def principal_axes(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """
    Axes of the residual stream, most energetic first (SliceGPT, section 3.3).

    Args:
        second_moment (`torch.Tensor` of shape `(D, D)`, float64):
            Sum of xᵀx over calibration tokens, in squared activation units. Not centred, not damped.

    Returns:
        `tuple`: `energy` `(D,)`, descending, same units; `Q` `(D, D)`, orthogonal, axes in columns. Float64.
        Signs, and order among ties, are arbitrary.

    Raises:
        ValueError: not square, not float64, or not finite (usually fp16 overflow: calibrate in bf16 or fp32).
    """
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise ValueError(f"second_moment has shape {tuple(second_moment.shape)}; it must be square, (D, D).")
    if second_moment.dtype != torch.float64:
        raise ValueError(f"second_moment is {second_moment.dtype}; float32 axes cost perplexity, pass torch.float64.")
    if not second_moment.isfinite().all():
        raise ValueError("second_moment is not finite, usually from float16 overflow: use bfloat16 or float32.")
    energy, axes = torch.linalg.eigh(second_moment)
    return energy.flip(0).clamp_min(0), axes.flip(1)


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """
    A rotation drawn from the Haar distribution.

    Args:
        size (`int`): number of dimensions, D.
        generator (`torch.Generator`): a CPU generator; the global one is never touched.

    Returns:
        `torch.Tensor` of shape `(D, D)`, float64, orthogonal.
    """
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def compose(weight: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """
    The product of a weight and a rotation, in float64 with one cast at the end.

    Args:
        weight (`torch.Tensor` of shape `(rows, D)` or `(experts, rows, D)`): in any dtype.
        matrix (`torch.Tensor` of shape `(D, k)`, float64): on the device that computes.
        dtype (`torch.dtype`): of the result.

    Returns:
        `torch.Tensor` of shape `(rows, k)` or `(experts, rows, k)`, on the device of `matrix`.
    """
    out = torch.empty(*weight.shape[:-1], matrix.shape[1], dtype=dtype, device=matrix.device)
    for source, target in zip(*((weight, out) if weight.ndim == 3 else (weight[None], out[None])), strict=True):
        for part, result in zip(source.split(ROWS_AT_ONCE), target.split(ROWS_AT_ONCE), strict=True):
            result.copy_(part.to(matrix) @ matrix)
    return out


def weighed_axes(second_moment: Tensor, metric: Tensor | None) -> Tensor:
    """
    Orthonormal axes whose first k, for every k, span the subspace that loses least.

    Without a metric, these are the principal axes. With a metric M, what a subspace loses is the least that M finds in
    `x - y` for any linear y in the subspace: the axes are those of `M^½ C M^½`, led back by `M^-½`.

    Args:
        second_moment (`torch.Tensor` of shape `(D, D)`, float64): sum of xᵀx, C.
        metric (`torch.Tensor` of shape `(D, D)`, float64, *optional*): positive definite.

    Returns:
        `torch.Tensor` of shape `(D, D)`, float64, orthogonal: axes in columns.
    """
    if metric is None:
        return principal_axes(second_moment)[1]
    root = torch.linalg.cholesky(metric)  # M = L Lᵀ, and Lᵀ does what M^½ would
    axes = principal_axes(root.T @ second_moment @ root)[1]
    return torch.linalg.qr(torch.linalg.solve_triangular(root.T, axes, upper=True))[0]


def shared_axes(
    second_moments: Sequence[Tensor],
    metrics: Sequence[Tensor] | Sequence[None],
    width: int,
    steps: int = 30,
    progress: Callable = iter,
) -> Tensor:
    """
    Orthonormal axes that lose least over all sites together.

    Without metrics, each site counts by the share of its energy that is lost, and the answer is an
    eigen-decomposition. With metrics M, the loss `Σ tr(M E C E)`, where E projects onto what is deleted, is lowered
    from there by L-BFGS, over maps Z that lead the deleted axes V into the span of `V + U Z`, U what was kept: a chart
    of the Grassmann manifold. Z is in units of the loss's curvature, roughly. Matrices are asked for one at a time.

    Args:
        second_moments (`Sequence[torch.Tensor]` of shape `(D, D)`, float64): sum of xᵀx at every site, C.
        metrics (`Sequence[torch.Tensor]` of shape `(D, D)`, float64, or of `None`): how each site weighs deviations.
        width (`int`): number of axes, k.
        steps (`int`, defaults to 30): the loss is evaluated at most so often.
        progress (callable, *optional*): wraps the range of steps.

    Returns:
        `torch.Tensor` of shape `(D, k)`, float64, orthonormal columns.
    """
    size = len(second_moments[0])
    if width == size:
        return torch.eye(size, dtype=torch.float64, device=second_moments[0].device)
    energy = sum(moment / moment.trace() for moment in second_moments)
    axes = principal_axes(energy)[1]
    if metrics[0] is None:
        return axes[:, :width]

    def diagonalised(axes, matrix):
        return axes @ torch.linalg.eigh(axes.T @ matrix @ axes)[1]

    def quadratic_forms(matrix, axes):
        return ((matrix @ axes) * axes).sum(0)

    # Along axes of energy and metric together, the curvature of the loss is near enough to diagonal.
    both = energy / energy.trace() + sum(metric / metric.trace() for metric in metrics) / len(metrics)
    kept, deleted = diagonalised(axes[:, :width], both), diagonalised(axes[:, width:], both)
    curvature = sum(
        torch.outer(quadratic_forms(one, kept), quadratic_forms(other, deleted))
        for pair in zip(second_moments, metrics, strict=True)
        for one, other in (pair, reversed(pair))
    )

    def loss_and_slope(deleted):
        loss, slope = 0.0, torch.zeros_like(deleted)
        for moment, metric in zip(second_moments, metrics, strict=True):
            moved, weighed = moment @ deleted, metric @ deleted
            inner, outer = deleted.T @ moved, deleted.T @ weighed
            loss += (inner * outer).sum()
            slope += 2 * (weighed @ inner + moved @ outer)
        return loss, slope

    first = loss_and_slope(deleted)[0].clamp_min(torch.finfo(deleted.dtype).tiny)
    unit = (first / curvature.clamp_min(1e-9 * curvature.mean())).sqrt()
    z = torch.zeros_like(unit, requires_grad=True)
    search = torch.optim.LBFGS([z], max_iter=steps, max_eval=steps, history_size=10, line_search_fn="strong_wolfe")
    ticks = iter(progress(range(steps)))

    def turned():
        return torch.linalg.qr(deleted + kept @ (z * unit))[0]

    def closure():
        next(ticks, None)
        search.zero_grad()
        axes = turned()
        loss, slope = loss_and_slope(axes.detach())
        axes.backward(slope / first)
        return loss / first

    search.step(closure)
    return torch.linalg.qr(turned().detach(), mode="complete")[0][:, size - width :]
