import pytest
import torch

from optimum_slicegpt.rotation import (
    ROWS_AT_ONCE,
    add_second_moment_,
    compose,
    principal_axes,
    random_orthogonal,
    shared_axes,
    weighed_axes,
)


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
    torch.testing.assert_close(total, total.T, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)


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


# Axes beyond those of one site


def positive(size, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return factor @ factor.T


def loss_in_metric(moment, metric, axes):
    """The least that the metric finds in what any linear map into the subspace leaves over."""
    inverse = torch.linalg.inv(axes.T @ metric @ axes)
    left = torch.eye(len(moment), dtype=torch.float64) - axes @ inverse @ axes.T @ metric
    return (metric @ left @ moment @ left.T).trace()


def test_without_a_metric_axes_are_principal():
    moment = positive(12, 0)
    assert torch.equal(weighed_axes(moment, None), principal_axes(moment)[1])
    weighed = weighed_axes(moment, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(weighed.abs(), principal_axes(moment)[1].abs())


@pytest.mark.parametrize("width", [1, 5, 11])
def test_no_subspace_loses_less_in_the_metric(width):
    moment, metric = positive(12, 0), positive(12, 1)
    axes = weighed_axes(moment, metric)
    torch.testing.assert_close(axes.T @ axes, torch.eye(12, dtype=torch.float64))
    best = loss_in_metric(moment, metric, axes[:, :width])
    energies = principal_axes(torch.linalg.cholesky(metric).T @ moment @ torch.linalg.cholesky(metric))[0]
    torch.testing.assert_close(best, energies[width:].sum())
    for seed in range(20):
        step = 0.1 * torch.randn(12, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other = torch.linalg.qr(axes[:, :width] + step)[0]
        assert loss_in_metric(moment, metric, other) > best


def test_shared_axes_are_those_of_all_sites_together():
    moments = [positive(12, seed) for seed in range(3)]
    axes = shared_axes(moments, [None] * 3, 5)
    torch.testing.assert_close(axes.T @ axes, torch.eye(5, dtype=torch.float64))
    kept = sum((axes.T @ moment @ axes).trace() / moment.trace() for moment in moments)
    mean = sum(moment / moment.trace() for moment in moments)
    torch.testing.assert_close(kept, principal_axes(mean)[0][:5].sum())


def test_shared_axes_descend_in_the_metrics():
    moments, metrics = ([positive(12, seed + shift) for seed in range(3)] for shift in (0, 10))

    def loss(axes):
        left = torch.eye(12, dtype=torch.float64) - axes @ axes.T
        return sum((metric @ left @ moment @ left).trace() for moment, metric in zip(moments, metrics, strict=True))

    start, found = shared_axes(moments, [None] * 3, 8), shared_axes(moments, metrics, 8)
    torch.testing.assert_close(found.T @ found, torch.eye(8, dtype=torch.float64))
    assert loss(found) < 0.9 * loss(start)
    assert loss(shared_axes(moments, metrics, 8, steps=120)) <= loss(found)


def test_all_axes_are_left_as_they_are():
    assert torch.equal(shared_axes([positive(4, 0)], [None], 4), torch.eye(4, dtype=torch.float64))
