"""Second moments."""

import pytest
import torch
from tensors import random

from optimum_slicegpt.linalg.moments import add_second_moment_
from optimum_slicegpt.linalg.products import mirror_


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_streamed_sums_equal_one_sum(dtype):
    x = random(60, 8).to(dtype)
    total = torch.zeros(8, 8, dtype=torch.float64)
    for part in x.split(7):
        add_second_moment_(total, part)
    mirror_(total)
    expected = x.double().T @ x.double()
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)
    torch.testing.assert_close(total, total.T, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)


def test_every_token_counts_by_its_factor():
    x, factor = random(60, 8), random(60, 1).abs()
    total = torch.zeros(8, 8, dtype=torch.float64)
    add_second_moment_(total, x, factor)
    mirror_(total)
    torch.testing.assert_close(total, (x * factor).T @ (x * factor))


def test_factors_may_be_larger_than_float16_holds():
    total = torch.zeros(8, 8, dtype=torch.float64)
    add_second_moment_(total, torch.ones(4, 8, dtype=torch.float16), torch.full((4, 1), 1e5))
    mirror_(total)
    torch.testing.assert_close(total, torch.full((8, 8), 4e10, dtype=torch.float64))


def test_products_of_bfloat16_are_as_exact_as_those_of_float32():
    x = random(4000, 64).bfloat16()
    exact = x.double().T @ x.double()
    total = torch.zeros(64, 64, dtype=torch.float64)
    add_second_moment_(total, x)
    mirror_(total)
    assert (total - exact).abs().max() < 1e-5 * exact.abs().max()
