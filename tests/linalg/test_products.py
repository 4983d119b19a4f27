"""Sums of products of which one half is kept."""

import pytest
import torch
from pretend_gpu import pretend_gpu
from tensors import random
from torch.utils._python_dispatch import TorchDispatchMode

from optimum_slicegpt.linalg.moments import add_second_moment_
from optimum_slicegpt.linalg.products import (
    STRIP_ROWS,
    Products,
    float32_products_of,
    number_of_products,
    strips,
)


@pytest.fixture
def summed():
    """Sums of 13 inputs and 5 outputs, and the whole sum that they are of."""
    x = random(60, 18)
    products = Products(13, 5, torch.float64, x.device)
    for part in x.split(7):
        products.add_tokens_(part)
    return products, x[:, :13].T @ x


def test_one_half_is_kept_and_all_is_there(summed):
    products, whole = summed
    assert products.values.shape == (number_of_products(13, 5),) and products.values.numel() < 13 * 18
    torch.testing.assert_close(products.gram(), whole[:, :13])
    torch.testing.assert_close(products.cross(), whole[:, 13:])
    torch.testing.assert_close(products.cross(torch.tensor([1, 4])), whole[:, [14, 17]])
    torch.testing.assert_close(products.diagonal(), whole.diagonal())


def test_products_with_a_matrix_need_no_other_half(summed):
    products, whole = summed
    matrix = random(13, 3)
    torch.testing.assert_close(products.gram_times(matrix), whole[:, :13] @ matrix)


def test_units_divide_rows_and_columns(summed):
    products, whole = summed
    unit = torch.arange(1.0, 14.0, dtype=torch.float64)
    found = products.upper_in_units(unit).triu()
    torch.testing.assert_close(found, (whole[:, :13] / unit[:, None] / unit).triu().float())


def test_sums_that_are_known_are_added(summed):
    products, whole = summed
    other = Products(13, 5, torch.float32, whole.device)
    other.add_matrix_(whole)
    products.add_(other)
    torch.testing.assert_close(products.gram(), 2 * whole[:, :13])
    torch.testing.assert_close(products.cross(), 2 * whole[:, 13:])


@pytest.mark.parametrize("rows, count", [(3, 4), (40, 4), (4096, 4), (4097, 5), (8960, 9)])
def test_strips_are_no_higher_than_pays(rows, count):
    found = list(strips(rows))
    assert len(found) == count and max(stop - start for start, stop in found) <= STRIP_ROWS
    assert [start for start, _ in found] + [rows] == [0] + [stop for _, stop in found]


def test_the_precision_of_products_is_what_it_was_before():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError, match="within"), float32_products_of(torch.bfloat16):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        raise RuntimeError("within")
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    "dtype, precision", [(torch.bfloat16, "tf32"), (torch.float16, "tf32"), (torch.float32, "ieee")]
)
def test_a_gpu_multiplies_as_fast_as_it_can_exactly(dtype, precision):
    seen, before = [], torch.backends.cuda.matmul.fp32_precision

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.mm.default:
                seen.append(torch.backends.cuda.matmul.fp32_precision)
            return func(*args, **kwargs or {})

    with pretend_gpu(), Products():
        x = random(60, 8).to("cuda", dtype)
        add_second_moment_(torch.zeros(8, 8, dtype=torch.float64, device="cuda"), x)
    assert set(seen) == {precision}
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_callers_that_round_products_do_not_round_sums():
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with float32_products_of(torch.float32):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
