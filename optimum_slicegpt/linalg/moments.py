"""
Sums of products over tokens, and products of weights with matrices, in float64.

References:
    Ashkboos et al. (2024), SliceGPT, https://arxiv.org/abs/2401.15024: the second moment (equation 8), the cost of
    float32 (table 4).
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor


ROWS_AT_ONCE = 2048
"""Number of rows that [`compose`] multiplies at a time: it bounds float64 copies of a large vocabulary to 100 MB."""

LEAST_STRIPS, STRIP_ROWS = 4, 1024
"""
A symmetric product is computed in strips of rows, each from the diagonal on: in so many at least, of so many rows at
most. Four strips take 10 of the 16 blocks of the whole product, nine 45 of 81. Thinner ones gain no time.
"""


def add_second_moment_(total: Tensor, x: Tensor, factor: Tensor | None = None) -> None:
    """
    Adds xᵀx to a running sum, on and above the diagonal. Once all tokens are added, [`mirror_`] fills in the rest.

    The product of one batch is taken in float32 at least, the sum over batches in float64: axes from sums in float32
    cost perplexity.

    Args:
        total (`torch.Tensor` of shape `(D, D)`, float64): the running sum, changed in place.
        x (`torch.Tensor` of shape `(tokens, D)`): the stream at a site.
        factor (`torch.Tensor` of shape `(tokens, 1)`, *optional*): multiplies each token of x.
    """
    if factor is not None:
        x = (x * factor).to(torch.bfloat16 if x.dtype == torch.bfloat16 else factor.dtype)
    add_products_(total, x)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Returns a dtype for what becomes of activations in `dtype`: float16 may be too narrow for it, bfloat16 never."""
    return torch.float32 if dtype == torch.float16 else dtype


def add_products_(total: Tensor, x: Tensor) -> None:
    """
    Adds `x[:, :rows].T @ x` to a running sum, except for the blocks below the diagonal, which [`mirror_`] fills in.

    Args:
        total (`torch.Tensor` of shape `(rows, columns)`, float64):
            the running sum, changed in place; in host memory if a device has no room for it.
        x (`torch.Tensor` of shape `(tokens, columns)`): in any dtype; products are taken in it, or in float32 if it is
            narrower, where it is.
    """
    with float32_products_of(x.dtype, x.device.type):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for start, stop in strips(len(total)):
            total[start:stop, start:] += (x[:, start:stop].T @ x[:, start:]).to(total.device)


def mirror_(total: Tensor) -> None:
    """Copies the blocks above the diagonal of a sum `(rows, columns)` to their places below it."""
    for start, stop in strips(len(total)):
        total[stop:, start:stop] = total[start:stop, stop : len(total)].T


def strips(rows: int) -> Iterator[tuple[int, int]]:
    """Returns where each strip of so many rows starts and ends, see [`LEAST_STRIPS`]."""
    count = max(LEAST_STRIPS, math.ceil(rows / STRIP_ROWS))
    return pairwise(rows * strip // count for strip in range(count + 1))


FAST_PRODUCTS = threading.Lock()
"""Held where it is set how float32 matrices are multiplied: the switch is one for all threads of a process."""

EXACT = {
    ("cpu", torch.bfloat16): "bf16",
    ("cuda", torch.bfloat16): "tf32",
    ("cuda", torch.float16): "tf32",
}
"""How a device may multiply float32 matrices that hold values of a dtype: its units round to no fewer digits."""


@contextmanager
def float32_products_of(dtype: torch.dtype, device: str = "cpu") -> Iterator[None]:
    """
    Lets float32 matrices whose values `dtype` can hold be multiplied as fast as a device does it exactly.

    For bfloat16 values, a processor whose matrix units multiply bfloat16 into float32 sums (AMX; others do not care)
    is twice as fast, and as exact; a GPU that multiplies TF32, which float16 fits into as well, far more. Others are
    multiplied in full, whatever a caller has set. Threads take turns; one that multiplies float32 elsewhere meanwhile
    gets products of rounded numbers.

    Args:
        dtype (`torch.dtype`): from which the values were converted to float32.
        device (`str`, defaults to `"cpu"`): type of the device that multiplies.
    """
    backend = getattr({"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(device), "matmul", None)
    if not hasattr(backend, "fp32_precision"):  # torch has it from version 2.9 on.
        yield
        return
    with FAST_PRODUCTS:
        before = backend.fp32_precision
        try:
            backend.fp32_precision = EXACT.get((device, dtype), "ieee")
            yield
        finally:
            backend.fp32_precision = before


def root_mean_square(stream: Tensor, eps: float = 1e-6) -> Tensor:
    """
    Computes the root mean square of each token, by which norms divide: `√(mean(x²) + eps)`.

    Args:
        stream (`torch.Tensor` of shape `(..., D)`): in any dtype.
        eps (`float`, defaults to 1e-6): of the norm.

    Returns:
        `torch.Tensor` of shape `(..., 1)`, in float32 at least; more than 0.
    """
    if stream.dtype in (torch.float16, torch.bfloat16):
        stream = stream.float()
    return (stream.square().mean(-1, keepdim=True) + eps).sqrt()


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Moves a tensor to a device and a dtype, and has it cross in the narrower of both dtypes."""
    narrower = min(tensor.dtype, dtype, key=lambda each: each.itemsize)
    return tensor.to(narrower).to(device).to(dtype)


def compose(weight: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """
    Computes `weight @ matrix` in float64, and rounds the result once.

    Args:
        weight (`torch.Tensor` of shape `(rows, D)` or `(experts, rows, D)`): in any dtype.
        matrix (`torch.Tensor` of shape `(D, k)`, float64): on the device that computes.
        dtype (`torch.dtype`): of the result.

    Returns:
        `torch.Tensor` of shape `(rows, k)` or `(experts, rows, k)`, on the device of `matrix`.
    """
    out = torch.empty(*weight.shape[:-1], matrix.shape[1], dtype=dtype, device=matrix.device)
    for source, target in zip(*((weight, out) if weight.ndim == 3 else (weight[None], out[None])), strict=True):
        for rows, result in zip(source.split(ROWS_AT_ONCE), target.split(ROWS_AT_ONCE), strict=True):
            result.copy_(moved(rows, matrix.device, matrix.dtype) @ matrix)
    return out
