import pytest
import torch

from optimum_slicegpt.rotation import (
    ROWS_AT_ONCE,
    add_second_moment_,
    compose,
    float32_products_of,
    mirror_,
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


def test_the_precision_of_products_is_what_it_was_before():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError, match="within"), float32_products_of(torch.bfloat16):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        raise RuntimeError("within")
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with float32_products_of(torch.float32):
        assert torch.backends.mkldnn.matmul.fp32_precision == before


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


def test_shared_axes_are_at_a_minimum():
    """No small rotation that mixes a kept with a deleted axis lowers the loss."""
    moments, metrics = ([positive(12, seed + shift) for seed in range(3)] for shift in (0, 10))
    axes = torch.linalg.qr(shared_axes(moments, metrics, 8, steps=200), mode="complete")[0]

    def loss(deleted):
        pairs = zip(moments, metrics, strict=True)
        return sum(((deleted.T @ moment @ deleted) * (deleted.T @ metric @ deleted)).sum() for moment, metric in pairs)

    least = loss(axes[:, 8:])
    for kept in range(8):
        for out in range(8, 12):
            turned = axes[:, 8:].clone()
            turned[:, out - 8] = (axes[:, out] + 0.03 * axes[:, kept]) / (1 + 0.03**2) ** 0.5
            assert loss(turned) > least


@pytest.mark.parametrize("rank", [3, 9])
def test_shared_axes_of_few_tokens(rank):
    """Nothing is lost where the axes that are kept hold all energy."""
    x = random(rank, 12)
    moments = [x.T @ x] * 2
    metrics = [positive(12, 1), positive(12, 2)]
    axes = shared_axes(moments, metrics, 8)
    torch.testing.assert_close(axes.T @ axes, torch.eye(8, dtype=torch.float64))
    if rank <= 8:
        torch.testing.assert_close(x @ axes @ axes.T, x)


def test_all_axes_are_left_as_they_are():
    assert torch.equal(shared_axes([positive(4, 0)], [None], 4), torch.eye(4, dtype=torch.float64))
