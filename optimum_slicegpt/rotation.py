"""Pure mathematics of rotations, on tensors. Imports torch and nothing of ours."""

import torch
from torch import Tensor


ROWS_AT_ONCE = 8192
"""Rows composed at a time: bounds the float64 copies of a large vocabulary to some 100 MB."""


def add_second_moment_(total: Tensor, x: Tensor) -> None:
    """
    Adds xᵀx to a running sum.

    The product of one batch is taken in float32 at least, the sum over batches in float64: the eigen-decomposition of
    sums kept in float32 costs perplexity (SliceGPT, table 4).

    Args:
        total (`torch.Tensor` of shape `(D, D)`, float64): the running sum, changed in place.
        x (`torch.Tensor` of shape `(tokens, D)`): the signal at a site.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    total += (x.T @ x).to(total)


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
