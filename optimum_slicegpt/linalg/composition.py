"""Products of weights with matrices, in float64."""

import torch
from torch import Tensor


ROWS_AT_ONCE = 2048
"""Number of rows that [`compose`] multiplies at a time: it bounds float64 copies of a large vocabulary to 100 MB."""


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Moves a tensor to a device and a dtype, and has it cross in the narrower of both dtypes."""
    narrower = min(tensor.dtype, dtype, key=lambda each: each.itemsize)
    return tensor.to(narrower).to(device).to(dtype)


def compose(weight: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """
    Computes `weight @ matrix` in float64, and rounds the result once. By a diagonal matrix no product is taken.

    Args:
        weight (`torch.Tensor` of shape `(rows, D)` or `(experts, rows, D)`): in any dtype.
        matrix (`torch.Tensor` of shape `(D, k)`, float64): on the device that computes.
        dtype (`torch.dtype`): of the result.

    Returns:
        `torch.Tensor` of shape `(rows, k)` or `(experts, rows, k)`, on the device of `matrix`.
    """
    out = torch.empty(*weight.shape[:-1], matrix.shape[1], dtype=dtype, device=matrix.device)
    diagonal = diagonal_of(matrix)
    for source, target in zip(*((weight, out) if weight.ndim == 3 else (weight[None], out[None])), strict=True):
        for rows, result in zip(source.split(ROWS_AT_ONCE), target.split(ROWS_AT_ONCE), strict=True):
            rows = moved(rows, matrix.device, matrix.dtype)
            result.copy_(rows @ matrix if diagonal is None else rows * diagonal)
    return out


def diagonal_of(matrix: Tensor) -> Tensor | None:
    """Returns the diagonal of a square matrix that has nothing else, as a basis of all dimensions has, or `None`."""
    diagonal = matrix.diagonal()
    alone = matrix.shape[0] == matrix.shape[1] and matrix.count_nonzero() == diagonal.count_nonzero()
    return diagonal if alone else None
