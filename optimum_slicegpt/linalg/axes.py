"""
Axes of the residual stream: principal, weighted by a metric, shared by all sites.

References:
    - Ashkboos et al. (2024), SliceGPT, https://arxiv.org/abs/2401.15024: section 3.3 and equation 8, principal axes.
    - Mezzadri (2007), How to generate random matrices from the classical compact groups,
      https://arxiv.org/abs/math-ph/0609050: random orthogonal matrices by QR.
    - Absil, Mahony and Sepulchre (2008), Optimization Algorithms on Matrix Manifolds: the Grassmann manifold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


SEARCH_STEPS = 30
"""Greatest number of times that a search for axes computes its loss."""


def principal_axes(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """
    Computes the eigenvectors of C = Σ xᵀx, by decreasing eigenvalue (SliceGPT, equation 8): C = Q diag(energy) Qᵀ.

    Args:
        second_moment (`torch.Tensor` of shape `(D, D)`, float64):
            C, the sum of xᵀx over calibration tokens, in squared activation units. Not centred, not damped.

    Returns:
        `tuple`: `energy` `(D,)`, descending, same units; `Q` `(D, D)`, orthogonal, axes in columns. Float64.
        Signs, and order among ties, are arbitrary.

    Raises:
        ValueError: not square, not float64, or not finite (usually fp16 overflow: calibrate in bf16 or fp32).

    Examples:
        >>> x = torch.tensor([[0.0, 3.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)  # 3 tokens, D = 2
        >>> energy, axes = principal_axes(x.T @ x)
        >>> energy.tolist(), axes.abs().tolist()
        ([9.0, 2.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise ValueError(f"second_moment has shape {tuple(second_moment.shape)}; it must be square, (D, D).")
    if second_moment.dtype != torch.float64:
        raise ValueError(f"second_moment is {second_moment.dtype}; float32 axes cost perplexity, pass torch.float64.")
    if not second_moment.isfinite().all():
        raise ValueError("second_moment is not finite, usually from float16 overflow: use bfloat16 or float32.")
    energy, axes = torch.linalg.eigh(second_moment)
    return energy.flip(0).clamp_min(0), axes.flip(1)


def random_orthogonal(size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """
    Draws an orthogonal matrix from the Haar distribution: `Q diag(sign(diag(R)))`, where Q R is the QR decomposition
    of independent normal numbers (Mezzadri, 2007, section 5).

    Args:
        size (`int`): number of dimensions, D.
        generator (`torch.Generator`): a CPU generator; the global one is never touched.
        device (`torch.device` or `str`, defaults to `"cpu"`): where the decomposition is computed.

    Returns:
        `torch.Tensor` of shape `(D, D)`, float64, orthogonal.
    """
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64, device="cpu").to(device))
    return q * r.diagonal().sign()


def weighted_axes(second_moment: Tensor, metric: Tensor | None) -> Tensor:
    """
    Computes orthonormal axes whose first k span, for every k, the k-dimensional subspace that loses least.

    The loss of a subspace is the least `Σ (x - y) M (x - y)ᵀ` over all linear maps from x to a y in the subspace. With
    M = L Lᵀ, it is the squared length of `(x - y) L`. So the axes are L⁻ᵀ P, made orthonormal in order, where P has
    the principal axes of Lᵀ C L. The eigenvalues of Lᵀ C L from k + 1 on add up to the loss. Without a metric, L is
    the identity.

    Args:
        second_moment (`torch.Tensor` of shape `(D, D)`, float64): C, the sum of xᵀx.
        metric (`torch.Tensor` of shape `(D, D)`, float64, *optional*): M, positive definite.

    Returns:
        `torch.Tensor` of shape `(D, D)`, float64, orthogonal: axes in columns.
    """
    if metric is None:
        return principal_axes(second_moment)[1]
    factor = torch.linalg.cholesky(metric)
    axes = principal_axes(factor.T @ second_moment @ factor)[1]
    return torch.linalg.qr(torch.linalg.solve_triangular(factor.T, axes, upper=True))[0]


def shared_axes(
    second_moments: Sequence[Tensor],
    metrics: Sequence[Tensor] | Sequence[None],
    width: int,
    steps: int = SEARCH_STEPS,
    progress: Callable = iter,
) -> Tensor:
    """
    Computes the k orthonormal axes that lose least over all sites together.

    Without metrics, a site loses the share of its energy that lies along the deleted axes, and the answer is the
    principal axes of `Σ C / tr C`. With metrics, the loss is [`deletion_loss`], whose minimum has no closed form: from
    these principal axes, L-BFGS lowers it in a [`Chart`] of the Grassmann manifold.

    Args:
        second_moments (`Sequence[torch.Tensor]` of shape `(D, D)`, float64):
            C of every site, the sum of xᵀx. Matrices are asked for one at a time.
        metrics (`Sequence[torch.Tensor]` of shape `(D, D)`, float64, or of `None`):
            M of every site: how deviations are weighted there.
        width (`int`): number of axes, k.
        steps (`int`, defaults to [`SEARCH_STEPS`]): greatest number of times that the loss is computed.
        progress (callable, *optional*): wraps the range of steps.

    Returns:
        `torch.Tensor` of shape `(D, k)`, float64, orthonormal columns.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sites = torch.randn(3, 100, 6, generator=generator, dtype=torch.float64)  # 3 sites, 100 tokens, D = 6
        >>> axes = shared_axes([x.T @ x for x in sites], [None] * 3, width=4)
        >>> axes.shape, torch.allclose(axes.T @ axes, torch.eye(4, dtype=torch.float64))
        (torch.Size([6, 4]), True)
    """
    size = len(second_moments[0])
    if width == size:
        return torch.eye(size, dtype=torch.float64, device=second_moments[0].device)
    energy = sum(moment / moment.trace() for moment in second_moments)
    axes = principal_axes(energy)[1]
    if metrics[0] is None:
        return axes[:, :width]

    # Along axes that diagonalise energy and metric together, the curvature of the loss is close to diagonal.
    both = energy / energy.trace() + sum(metric / metric.trace() for metric in metrics) / len(metrics)
    kept, deleted = diagonalising_axes(both, axes[:, :width]), diagonalising_axes(both, axes[:, width:])
    curvature = deletion_curvature(kept, deleted, second_moments, metrics)
    loss = deletion_loss(deleted, second_moments, metrics)[0].clamp_min(torch.finfo(deleted.dtype).tiny)
    chart = Chart(kept, deleted, unit=(loss / curvature.clamp_min(1e-9 * curvature.mean())).sqrt())
    deleted = minimise_in_chart(
        chart, lambda axes: deletion_loss(axes, second_moments, metrics), loss, steps, progress
    )
    return torch.linalg.qr(deleted, mode="complete")[0][:, size - width :]


def aligned_axes(axes: Tensor) -> Tensor:
    """
    Turns axes within their span until they lie as near as they can to k of the D coordinates.

    The coordinates are chosen one after another: always the one of which most is in the span, without the part that
    the ones before explain (Cholesky decomposition of `Q Qᵀ` with pivoting). With S these k, and `U Σ Vᵀ` the singular
    value decomposition of the rows S of Q, transposed, the axes are `Q U Vᵀ` (orthogonal Procrustes problem).

    Args:
        axes (`torch.Tensor` of shape `(D, k)`, float64): Q, orthonormal columns.

    Returns:
        `torch.Tensor` of shape `(D, k)`, float64, orthonormal columns.

    Examples:
        >>> axes = torch.linalg.qr(torch.tensor([[0.9, 0.2], [0.1, 0.3], [0.1, 0.8]], dtype=torch.float64))[0]
        >>> aligned_axes(axes).abs().argmax(0).tolist()
        [0, 2]
    """
    rows, chosen = axes.clone(), []
    for _ in range(axes.shape[1]):
        left = rows.square().sum(1)
        left[chosen] = -1
        chosen.append(left.argmax().item())
        direction = rows[chosen[-1]] / rows[chosen[-1]].norm()
        rows -= torch.outer(rows @ direction, direction)
    u, _, vh = torch.linalg.svd(axes[sorted(chosen)].T)
    return axes @ (u @ vh)


def diagonalising_axes(matrix: Tensor, axes: Tensor) -> Tensor:
    """Computes axes `(D, n)` of the same span as `axes` along which a symmetric matrix `(D, D)` is diagonal."""
    return axes @ torch.linalg.eigh(axes.T @ matrix @ axes)[1]


def deletion_loss(
    deleted: Tensor, second_moments: Sequence[Tensor], metrics: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """
    Computes the loss of deleting axes V, `Σ tr(M E C E)` over all sites with E = V Vᵀ, and its gradient.

    The loss is `Σ tr(VᵀCV VᵀMV)`, its gradient with respect to V `2 Σ (M V VᵀCV + C V VᵀMV)`.

    Args:
        deleted (`torch.Tensor` of shape `(D, D - k)`, float64): V, orthonormal columns.
        second_moments, metrics (`Sequence[torch.Tensor]` of shape `(D, D)`, float64): C and M of every site.

    Returns:
        `tuple`: the loss `()` and the gradient `(D, D - k)`, float64.
    """
    loss, gradient = 0.0, torch.zeros_like(deleted)
    for moment, metric in zip(second_moments, metrics, strict=True):
        c_v, m_v = moment @ deleted, metric @ deleted
        v_c_v, v_m_v = deleted.T @ c_v, deleted.T @ m_v
        loss += (v_c_v * v_m_v).sum()
        gradient += 2 * (m_v @ v_c_v + c_v @ v_m_v)
    return loss, gradient


def deletion_curvature(
    kept: Tensor, deleted: Tensor, second_moments: Sequence[Tensor], metrics: Sequence[Tensor]
) -> Tensor:
    """
    Estimates how the loss curves when the deleted axis v turns towards the kept axis u, for every pair of axes.

    Of the second derivative of [`deletion_loss`], halved, it has the terms that are never negative:
    `Σ (uᵀCu vᵀMv + uᵀMu vᵀCv)`.

    Args:
        kept (`torch.Tensor` of shape `(D, k)`, float64): the axes u.
        deleted (`torch.Tensor` of shape `(D, D - k)`, float64): the axes v.
        second_moments, metrics (`Sequence[torch.Tensor]` of shape `(D, D)`, float64): C and M of every site.

    Returns:
        `torch.Tensor` of shape `(k, D - k)`, float64.
    """

    def quadratic_forms(matrix, axes):
        return ((matrix @ axes) * axes).sum(0)

    return sum(
        torch.outer(quadratic_forms(of_kept, kept), quadratic_forms(of_deleted, deleted))
        for pair in zip(second_moments, metrics, strict=True)
        for of_kept, of_deleted in (pair, reversed(pair))
    )


@dataclass(frozen=True)
class Chart:
    """
    A chart of the Grassmann manifold around deleted axes V: a matrix Z stands for the span of `V + U (Z ∘ unit)`.

    Args:
        kept (`torch.Tensor` of shape `(D, k)`, float64): U, orthonormal columns.
        deleted (`torch.Tensor` of shape `(D, D - k)`, float64): V, orthonormal columns, orthogonal to U.
        unit (`torch.Tensor` of shape `(k, D - k)`, float64):
            Scale of each coordinate. It preconditions a search: with `(loss / curvature)½` the loss curves about
            equally along all coordinates.
    """

    kept: Tensor
    deleted: Tensor
    unit: Tensor

    def axes(self, z: Tensor) -> Tensor:
        """Computes orthonormal axes `(D, D - k)` of the span that coordinates `(k, D - k)` stand for."""
        return torch.linalg.qr(self.deleted + self.kept @ (z * self.unit))[0]


def minimise_in_chart(
    chart: Chart,
    loss_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    scale: Tensor,
    steps: int,
    progress: Callable,
) -> Tensor:
    """
    Searches a chart by L-BFGS for the axes of the lowest loss, from the middle of the chart.

    Args:
        chart ([`Chart`]): where to search.
        loss_and_gradient (callable): from axes `(D, D - k)` to their loss `()` and its gradient `(D, D - k)`.
        scale (`torch.Tensor` of shape `()`): unit in which the search has the loss.
        steps (`int`): greatest number of times that the loss is computed.
        progress (callable): wraps the range of steps.

    Returns:
        `torch.Tensor` of shape `(D, D - k)`, float64, orthonormal columns.
    """
    z = torch.zeros_like(chart.unit, requires_grad=True)
    search = torch.optim.LBFGS([z], max_iter=steps, max_eval=steps, history_size=10, line_search_fn="strong_wolfe")
    ticks = iter(progress(range(steps)))

    def closure():
        next(ticks, None)
        search.zero_grad()
        axes = chart.axes(z)
        loss, gradient = loss_and_gradient(axes.detach())
        axes.backward(gradient / scale)
        return loss / scale

    search.step(closure)
    return chart.axes(z).detach()
