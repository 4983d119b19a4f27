"""Axes of one site and of all sites, in the plain metric and in others."""

import pytest
import torch
from tensors import generator, random

from optimum_slicegpt.linalg.axes import aligned_axes, principal_axes, random_orthogonal, shared_axes, weighted_axes


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


def test_random_orthogonal_is_orthogonal_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    rotation = random_orthogonal(20, generator(3))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(20, dtype=torch.float64))
    assert torch.equal(rotation, random_orthogonal(20, generator(3)))
    assert not torch.equal(rotation, random_orthogonal(20, generator(4)))
    assert torch.equal(state, torch.get_rng_state())


# Axes beyond those of one site


def positive(size, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return factor @ factor.T


def loss_in_metric(moment, metric, axes):
    """Computes the least loss, in the metric, of all linear maps into the subspace."""
    inverse = torch.linalg.inv(axes.T @ metric @ axes)
    left = torch.eye(len(moment), dtype=torch.float64) - axes @ inverse @ axes.T @ metric
    return (metric @ left @ moment @ left.T).trace()


def test_without_a_metric_axes_are_principal():
    moment = positive(12, 0)
    assert torch.equal(weighted_axes(moment, None), principal_axes(moment)[1])
    weighed = weighted_axes(moment, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(weighed.abs(), principal_axes(moment)[1].abs())


@pytest.mark.parametrize("width", [1, 5, 11])
def test_no_subspace_loses_less_in_the_metric(width):
    moment, metric = positive(12, 0), positive(12, 1)
    axes = weighted_axes(moment, metric)
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


def test_aligned_axes_span_the_same_and_find_coordinates():
    coordinates = torch.eye(12, dtype=torch.float64)[:, [1, 4, 5, 9]]
    turned = coordinates @ random_orthogonal(4, generator())
    assert torch.allclose(aligned_axes(turned), coordinates)
    axes = random_orthogonal(12, generator())[:, :7]
    aligned = aligned_axes(axes)
    assert torch.allclose(aligned @ aligned.T, axes @ axes.T)
    assert aligned.square().max(0).values.mean() > 1.5 * axes.square().max(0).values.mean()
