"""How fast a machine does the kinds of work that a run consists of, tried at the sizes that the run will have."""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import silu

from ..linalg.composition import ROWS_AT_ONCE, compose
from ..linalg.products import Products
from ..linalg.regression import TOKENS_AT_ONCE
from ..linalg.ridge import factorise


LARGEST = {"cpu": 2048, "cuda": 8192}
"""Rows and columns from which on a product is about as fast as any larger one, by the type of the device."""

TRIALS, SECONDS = 5, 0.05
"""Least number of trials, of which the fastest counts, and the time that they take together at least."""


def _forward(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable, int]:
    x, weight = _matrix(TOKENS_AT_ONCE, size, dtype, device), _matrix(size, size, dtype, device)
    between, out = torch.empty_like(x), torch.empty_like(x)  # Whether new memory costs time, is chance.

    def trial():
        torch.mm(silu(torch.mm(x, weight, out=between), inplace=True), weight, out=out)

    return trial, 4 * TOKENS_AT_ONCE * size**2


def _sums(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable, int]:
    products, x = Products(size, 0, torch.float64, device), _matrix(TOKENS_AT_ONCE, size, dtype, device)
    return lambda: products.add_tokens_(x), TOKENS_AT_ONCE * size**2


def _factorisation(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable, int]:
    products, unit = Products(size, 0, dtype, device), torch.ones(size, dtype=dtype, device=device)
    return lambda: factorise(products, unit, 1.0), size**3 / 3


def _eigenvectors(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable, int]:
    matrix = _matrix(size, size, dtype, device)
    matrix = matrix + matrix.T
    return lambda: torch.linalg.eigh(matrix), 12 * size**3


def _product(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable, int]:
    weight, matrix = _matrix(ROWS_AT_ONCE, size, dtype, device), _matrix(size, size, dtype, device)
    return lambda: compose(weight, matrix, dtype), 2 * ROWS_AT_ONCE * size**2


KINDS = {
    "forward": _forward,
    "sums": _sums,
    "factorisation": _factorisation,
    "eigenvectors": _eigenvectors,
    "product": _product,
}
"""Kind of work -> a function of size, dtype and device that returns a trial and its floating point operations."""


def _matrix(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(device, dtype)


@cache
def flops_per_s(kind: str, size: int, dtype: str, device: str) -> float:
    """
    Tries how many floating point operations of a kind a device does in a second.

    Args:
        kind (`str`): one of [`KINDS`].
        size (`int`): rows and columns of matrices; those from [`LARGEST`] on are tried at that size.
        dtype (`str`): of what is multiplied.
        device (`str`): where.
    """
    device = torch.device(device)
    size = min(size, LARGEST.get(device.type, LARGEST["cpu"]))
    trial, flops = KINDS[kind](size, getattr(torch, dtype), device)
    seconds = []
    while len(seconds) < TRIALS or sum(seconds) < SECONDS:
        start = _clock(device)
        trial()
        seconds.append(_clock(device) - start)
    return flops / max(min(seconds), 1e-9)


def _clock(device: torch.device) -> float:
    """Returns the time in seconds; on CPUs that of the processor, which other programs do not slow down."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.perf_counter()
