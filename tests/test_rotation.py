import pytest
import torch

from optimum_slicegpt.rotation import ROWS_AT_ONCE, add_second_moment_, compose, principal_axes, random_orthogonal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(), dtype=dtype)


def test_principal_axes_diagonalise_most_energetic_first():
    x = random(100, 12) * torch.arange(1, 13)
    moment = x.T @ x
    energy, axes = principal_axes(moment)
    assert torch.all(energy.diff() <= 0)
    torch.testing.assert_close(axes.T @ axes, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(axes @ energy.diag() @ axes.T, moment)


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.float64), r"shape \(3, 4\); it must be square"),
        (torch.zeros(3, 3), "second_moment is torch.float32; .* pass torch.float64"),
        (torch.full((3, 3), float("inf"), dtype=torch.float64), "not finite, usually from float16 overflow"),
    ],
)
def test_principal_axes_refuses(moment, message):
    with pytest.raises(ValueError, match=message):
        principal_axes(moment)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_streamed_sums_equal_one_sum(dtype):
    x = random(60, 8).to(dtype)
    total = torch.zeros(8, 8, dtype=torch.float64)
    for part in x.split(7):
        add_second_moment_(total, part)
    expected = x.double().T @ x.double()
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)


def test_random_orthogonal_is_orthogonal_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    rotation = random_orthogonal(20, generator(3))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(20, dtype=torch.float64))
    assert torch.equal(rotation, random_orthogonal(20, generator(3)))
    assert not torch.equal(rotation, random_orthogonal(20, generator(4)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("rows", [5, ROWS_AT_ONCE + 3])
def test_compose_rounds_once(rows):
    weight, matrix = random(rows, 6, dtype=torch.float32), random(6, 4)
    product = compose(weight, matrix, torch.float32)
    assert torch.equal(product, (weight.double() @ matrix).float())
