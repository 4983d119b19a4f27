"""Second moments, and products that are rounded once."""

import pytest
import torch
from pretend_gpu import pretend_gpu
from tensors import random
from torch.utils.flop_counter import FlopCounterMode

from optimum_slicegpt.linalg.moments import ROWS_AT_ONCE, add_second_moment_, compose, moved
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


def test_tensors_cross_in_the_narrower_dtype():
    weight = random(3, 4).bfloat16()
    with pretend_gpu() as gpu:
        there = moved(weight, torch.device("cuda"), torch.float64)
        back = moved(there, torch.device("cpu"), torch.bfloat16)
        compose(weight, random(4, 2).to("cuda"), torch.bfloat16)
    assert there.dtype == torch.float64 and torch.equal(back, weight)
    assert gpu.transfers.total() == 3 * weight.nbytes + 4 * 2 * 8


@pytest.mark.parametrize("rows", [5, ROWS_AT_ONCE + 3])
def test_compose_rounds_once(rows):
    weight, matrix = random(rows, 6, dtype=torch.float32), random(6, 4)
    product = compose(weight, matrix, torch.float32)
    assert torch.equal(product, (weight.double() @ matrix).float())


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
def test_a_diagonal_matrix_takes_no_product(shape):
    weight, matrix = random(*shape).bfloat16(), random(6).diag()
    expected = (weight.double() @ matrix).bfloat16()
    with FlopCounterMode(display=False) as counter:
        found = compose(weight, matrix, torch.bfloat16)
        assert counter.get_total_flops() == 0
        matrix[0, 5] = 1e-9
        compose(weight, matrix, torch.bfloat16)
        assert counter.get_total_flops() > 0
    assert torch.equal(found, expected)
