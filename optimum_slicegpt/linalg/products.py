"""Sums over tokens of products, of which only one half is computed and kept: they are symmetric."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor


LEAST_STRIPS, STRIP_ROWS = 4, 1024
"""
A symmetric product is computed in strips of rows, each from the diagonal on: in so many at least, of so many rows at
most. Four strips take 10 of the 16 blocks of the whole product, nine 45 of 81. Thinner ones gain no time.
"""


def strips(rows: int) -> Iterator[tuple[int, int]]:
    """Returns where each strip of so many rows starts and ends, see [`LEAST_STRIPS`]."""
    count = max(LEAST_STRIPS, math.ceil(rows / STRIP_ROWS))
    return pairwise(rows * strip // count for strip in range(count + 1))


class Products:
    """
    Sums over tokens of the products of inputs with inputs, G = Σ aᵀa, and with outputs, C = Σ aᵀy.

    Args:
        inputs (`int`): length of a, n.
        outputs (`int`): length of y, k.
        dtype (`torch.dtype`): of the sums over batches.
        device (`torch.device`): holds them.

    Attributes:
        values (`torch.Tensor`, 1-D): all sums, without the blocks of G below its diagonal.
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device):
        self.inputs = inputs
        self.values = torch.zeros(number_of_products(inputs, outputs), dtype=dtype, device=device)
        shapes = [(stop - start, inputs + outputs - start) for start, stop in strips(inputs)]
        parts = self.values.split([math.prod(shape) for shape in shapes])
        self._strips = [
            (start, stop, part.view(shape))
            for (start, stop), part, shape in zip(strips(inputs), parts, shapes, strict=True)
        ]

    def add_tokens_(self, x: Tensor) -> None:
        """Adds tokens `(tokens, n + k)`, inputs and outputs side by side, see [`add_products_`]."""
        add_products_(self._strips, x)

    def add_(self, other: Products) -> None:
        """Adds the sums over other tokens, in any dtype: a strip at a time, as torch first converts what it adds."""
        for (_, _, mine), (_, _, theirs) in zip(self._strips, other._strips, strict=True):
            mine.add_(theirs)

    def add_matrix_(self, matrix: Tensor) -> None:
        """Adds sums that are known, G and C side by side, `(n, n + k)`."""
        for start, stop, strip in self._strips:
            strip.add_(matrix[start:stop, start:])

    def cross(self, outputs: Tensor | slice = slice(None)) -> Tensor:
        """Returns C `(n, k)`, or the columns of some outputs."""
        return torch.cat([strip[:, self.inputs - start :][:, outputs] for start, _, strip in self._strips])

    def gram(self) -> Tensor:
        """Returns G `(n, n)`."""
        found = self.values.new_empty(self.inputs, self.inputs)
        for start, stop, strip in self._strips:
            found[start:stop, start:] = strip[:, : self.inputs - start]
        mirror_(found)
        return found

    def diagonal(self) -> Tensor:
        """Returns the sums of the squares of the inputs `(n,)`."""
        return torch.cat([strip.diagonal() for _, _, strip in self._strips])

    def gram_times(self, matrix: Tensor) -> Tensor:
        """Returns `G @ matrix` for a matrix `(n, columns)` of the same dtype."""
        found = torch.zeros_like(matrix)
        for start, stop, strip in self._strips:
            rows = strip[:, : self.inputs - start]
            found[start:stop] += rows @ matrix[start:]
            found[stop:] += rows[:, stop - start :].T @ matrix[start:stop]
        return found

    def upper_in_units(self, unit: Tensor) -> Tensor:
        """
        Returns G `(n, n)` with rows and columns divided by the units `(n,)` of the inputs, in float32; blocks below
        its diagonal hold anything.
        """
        found = torch.empty(self.inputs, self.inputs, dtype=torch.float32, device=unit.device)
        for start, stop, strip in self._strips:
            torch.div(strip[:, : self.inputs - start], unit[start:stop, None], out=found[start:stop, start:])
            found[start:stop, start:] /= unit[start:].float()
        return found


def number_of_products(inputs: int, outputs: int) -> int:
    """Returns how many sums [`Products`] of these lengths has."""
    return sum((stop - start) * (inputs + outputs - start) for start, stop in strips(inputs))


def add_products_(parts: Iterable[tuple[int, int, Tensor]], x: Tensor) -> None:
    """
    Adds `x[:, :rows].T @ x` to a running sum of so many rows, without the blocks below the diagonal.

    Args:
        parts: strips of the sum, changed in place: for each its first row, the row behind its last one, and its values
            `(rows, columns)` from the diagonal on, in host memory if a device has no room for them.
        x (`torch.Tensor` of shape `(tokens, columns)`): in any dtype; products are taken in it, or in float32 if it is
            narrower, where it is.
    """
    with float32_products_of(x.dtype, x.device.type):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for start, stop, total in parts:
            total.add_((x[:, start:stop].T @ x[:, start:]).to(total.device))


def upper_strips(total: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Returns the strips of a square matrix, for [`add_products_`]. [`mirror_`] fills in the rest."""
    return ((start, stop, total[start:stop, start:]) for start, stop in strips(len(total)))


def mirror_(total: Tensor) -> None:
    """Copies the blocks above the diagonal of a square matrix to their places below it."""
    for start, stop in strips(len(total)):
        total[stop:, start:stop] = total[start:stop, stop:].T


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
