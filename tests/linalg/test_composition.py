"""Products that are rounded once."""

import pytest
import torch
from pretend_gpu import pretend_gpu
from tensors import random
from torch.utils.flop_counter import FlopCounterMode

from optimum_slicegpt.linalg.composition import ROWS_AT_ONCE, compose, moved


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
