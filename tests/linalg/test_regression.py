"""Linear regression for refits, against brute force."""

import pytest
import torch
from pretend_gpu import pretend_gpu

from optimum_slicegpt.linalg import regression
from optimum_slicegpt.linalg.regression import LeastSquares, bytes_needed, token_stride
from optimum_slicegpt.linalg.ridge import FIRST_STRENGTH, ROUNDING, STRENGTHS, best_strength, solutions_nearby


def problem(tokens=4000, inputs=12, outputs=5, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(inputs, inputs, generator=generator)
    a = torch.randn(tokens, inputs, generator=generator) @ mix
    weight = torch.randn(inputs, outputs, generator=generator)
    return a, a @ weight + noise * torch.randn(tokens, outputs, generator=generator), weight.double()


def fit(a, y, batches=4):
    fitted = LeastSquares(a.shape[1], y.shape[1], a.device)
    for part in zip(a.chunk(batches), y.chunk(batches), strict=True):
        numbers = torch.arange(len(part[0]))
        fitted.add(*part, held_out=numbers * 8 // len(numbers) == 7)
    return fitted


def gram_and_cross(fitted):
    """Returns the sums `(1 + groups, inputs, inputs)` and `(1 + groups, inputs, outputs)`."""
    products = fitted.finish()
    return tuple(torch.stack([getattr(each, name)().double() for each in products]) for name in ("gram", "cross"))


def ridge(gram, cross, strength):
    own = gram.diagonal()
    return torch.linalg.solve(gram + strength * own.clamp_min(ROUNDING * own.mean()).diag(), cross)


def test_sums_over_batches_are_those_of_all_tokens():
    a, y, _ = problem(inputs=13)
    fitted = fit(a, y)
    gram, cross = gram_and_cross(fitted)
    torch.testing.assert_close(gram.sum(0), a.double().T @ a.double(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(cross.sum(0), a.double().T @ y.double(), rtol=1e-5, atol=1e-2)


def test_small_regressions_take_fewer_tokens():
    assert [token_stride(inputs, 1536) for inputs in (1536, 1200, 576, 384, 1600)] == [1, 1, 2, 4, 1]


def test_held_out_tokens_of_each_group_are_kept_apart():
    fitted = LeastSquares(1, 1, torch.device("cpu"), groups=2)
    for group, count in ((0, 16), (1, 5), (0, 3)):
        held_out = torch.arange(count) < 2
        fitted.add(torch.ones(count, 1), torch.ones(count, 1), held_out=held_out, group=group, weight=2.0)
    assert gram_and_cross(fitted)[0].flatten().tolist() == [4 * (14 + 3 + 1), 4 * (2 + 2), 4 * 2]


def test_the_strength_is_the_best_of_all_for_tokens_held_out():
    """The search leaves its start in either direction, and each input has a unit of its own."""
    found = set()
    for noise, tokens in ((0.0, 4000), (3.0, 400), (30.0, 300), (100.0, 200)):
        a, y, weight = problem(tokens=tokens, inputs=64, noise=noise)
        fitted = fit(a, y, batches=1)
        gram, cross = gram_and_cross(fitted)
        prior = 0.5 * weight
        missing, wanted = cross - gram @ prior
        changes = {strength: ridge(gram[0], missing, strength) for strength in STRENGTHS}
        losses = {key: ((gram[1] @ change - 2 * wanted) * change).sum() for key, change in changes.items()}
        best = min(losses, key=losses.get)
        assert best_strength(fitted.finish(), prior) == (best if losses[best] < 0 else None)
        found.add(best)
    assert min(found) < FIRST_STRENGTH < max(found)


def test_the_strength_is_the_best_for_the_worst_group():
    """Other groups have other noise; one of them has no held-out token at all."""
    parts = [problem(tokens=300, inputs=64, noise=noise)[:2] for noise in (1.0, 100.0)]
    fitted = LeastSquares(64, 5, torch.device("cpu"), groups=3)
    for group, (a, y) in enumerate([*parts, (parts[0][0][:4], parts[0][1][:4])]):
        fitted.add(a, y, held_out=torch.arange(len(a)) >= 250, group=group)
    gram, cross = gram_and_cross(fitted)
    prior = torch.zeros(64, 5, dtype=torch.float64)
    changes = {strength: ridge(gram[0], cross[0], strength) for strength in STRENGTHS}
    losses = {
        strength: max(((gram[i] @ change - 2 * cross[i]) * change).sum() for i in (1, 2))
        for strength, change in changes.items()
    }
    best = min(losses, key=losses.get)
    products = fitted.finish()
    assert best_strength(products, prior) == (best if losses[best] < 0 else None)
    assert best_strength([products[index] for index in (0, 1, 3)], prior) is not None


@pytest.mark.parametrize("shift", [-0.9, -0.7, 0.0, 2.0, 9.0])
def test_one_factorisation_serves_other_strengths(shift):
    """One input is a stranger to the others, and one column has nothing to find."""
    gram = torch.block_diag(problem(inputs=40)[0].double().T.cov(), torch.ones(1, 1)).corrcoef().float()
    gram += FIRST_STRENGTH * torch.eye(41)
    right = torch.randn(41, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 0, 1e-3, 1e3, 1, 1])
    right[:, 5] = torch.eye(41)[40]
    found = solutions_nearby(torch.linalg.cholesky(gram), right)(shift)
    exact = torch.linalg.solve(gram.double() + shift * torch.eye(41), right.double())
    assert ((found - exact).norm(dim=0) <= 0.03 * exact.norm(dim=0)).all()


def test_an_mlp_takes_three_factorisations(monkeypatch):
    """In float32: one for the search, as long as it stays near its start, one for the fit and one for the neurons."""
    a, y, weight = problem(tokens=200, inputs=64, noise=100.0)
    fitted, dtypes, cholesky = fit(a, y, batches=1), [], torch.linalg.cholesky

    def counted(matrix, **options):
        dtypes.append(matrix.dtype)
        return cholesky(matrix, **options)

    monkeypatch.setattr(torch.linalg, "cholesky", counted)
    found = fitted.solve(0.5 * weight)
    fitted.delete_inputs(slice(0, 64), 20, found)
    assert not torch.equal(found, 0.5 * weight)
    assert dtypes == [torch.float32] * 3


def test_with_many_tokens_the_prior_does_not_matter():
    a, y, weight = problem()
    found = fit(a, y).solve(torch.zeros_like(weight))
    assert (a.double() @ (found - weight)).square().mean() < 1e-2 * (a.double() @ weight).square().mean()


def test_what_nothing_improves_is_returned_as_it_was():
    a, y, weight = problem(noise=0.0)
    assert torch.equal(fit(a, y).solve(weight), weight)


def test_noise_is_not_fitted():
    """There are fewer tokens than unknowns, and nothing to learn: an unguarded solution would fit noise perfectly."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    a, unseen = (torch.randn(64, 64, generator=generator) for _ in range(2))
    y = a @ prior.float() + torch.randn(64, 8, generator=generator)
    found = fit(a, y, batches=1).solve(prior)
    unguarded = torch.linalg.lstsq(a.double(), y.double()).solution

    def error(weight):
        return (unseen.double() @ (weight - prior)).square().mean()

    assert error(found) < 0.3 < error(unguarded)


@pytest.mark.parametrize("strength", STRENGTHS[::3])
def test_float32_factors_serve_a_float64_solution(monkeypatch, strength):
    a, y, weight = problem(tokens=400, inputs=64, noise=30.0)
    gram, cross = (each.sum(0) for each in gram_and_cross(fit(a, y)))
    monkeypatch.setattr(regression, "best_strength", lambda *_: strength)
    expected = 0.5 * weight + ridge(gram, cross - gram @ (0.5 * weight), strength)
    assert ((fit(a, y).solve(0.5 * weight) - expected).norm() < 1e-5 * expected.norm()).item()


@pytest.mark.parametrize("strength, far", [(1e-4, 1.0), (1e9, 0.0)])
def test_a_ridge_leads_to_the_prior(monkeypatch, strength, far):
    a, y, weight = problem()
    prior, alone = 2 * weight, torch.linalg.lstsq(a.double(), y.double()).solution
    monkeypatch.setattr(regression, "best_strength", lambda *_: strength)
    torch.testing.assert_close(fit(a, y).solve(prior), torch.lerp(prior, alone, far), rtol=0, atol=0.05)


def test_units_of_an_input_do_not_matter():
    a, y, weight = problem(noise=1.0)
    units = torch.logspace(-1, 1, 12)
    prior = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, scaled = fit(a, y).solve(prior), fit(a * units, y).solve(prior / units[:, None].double())
    torch.testing.assert_close(scaled * units[:, None].double(), found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rounding", [0.0, 1e-15])
def test_an_input_that_is_never_used_keeps_its_weight(rounding):
    """This holds even where the input consists of rounding errors, which may correlate with the outputs."""
    a, y, weight = problem()
    a[:, 3] = rounding * (y[:, 0] + torch.randn(len(y), generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(fit(a, y).solve(2 * weight)[3], 2 * weight[3], rtol=1e-2, atol=1e-2)


@pytest.fixture
def hardly_a_ridge(monkeypatch):
    """Makes the ridge so small that the remaining inputs replace deleted ones as well as possible."""
    monkeypatch.setattr(regression, "COMPENSATION", 1e-3)


def loss(a, weight, left, indices):
    return (a.double() @ weight - a[:, indices].double() @ left).square().sum()


def test_the_cheapest_input_is_deleted(hardly_a_ridge):
    a, y, weight = problem(inputs=8)
    fitted = fit(a, y)
    left, indices = fitted.delete_inputs(slice(0, 8), 1, weight)
    best = {}
    for out in range(8):
        others = [index for index in range(8) if index != out]
        compensated = torch.linalg.lstsq(a[:, others].double(), a.double() @ weight).solution
        best[out] = loss(a, weight, compensated, others)
    assert set(range(8)) - set(indices.tolist()) == {min(best, key=best.get)}
    assert loss(a, weight, left, indices) < 1.05 * min(best.values())


def test_only_candidates_are_deleted():
    a, y, weight = problem()
    left, indices = fit(a, y).delete_inputs(slice(3, 9), 5, weight)
    assert left.shape == (7, 5)
    assert {0, 1, 2, 9, 10, 11} < set(indices.tolist())
    assert indices.tolist() == sorted(indices.tolist())


def test_in_several_rounds_others_take_over_as_in_one_solution():
    a, y, weight = problem(tokens=400, inputs=24)
    left, indices = fit(a, y).delete_inputs(slice(0, 24), 9, weight)
    gram = gram_and_cross(fit(a, y))[0].sum(0)
    out = sorted(set(range(24)) - set(indices.tolist()))
    compensation = ridge(gram[indices][:, indices], gram[indices][:, out] @ weight[out], regression.COMPENSATION)
    torch.testing.assert_close(left, weight[indices] + compensation, rtol=1e-5, atol=1e-5)


def test_others_take_over_what_a_copy_did(hardly_a_ridge):
    a, _, _ = problem()
    a[:, 6:] = a[:, :6]
    weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, indices = fit(a, a @ weight.float()).delete_inputs(slice(0, 12), 2, weight)
    assert {index % 6 for index in indices.tolist()} == set(range(6))
    assert loss(a, weight, left, indices) < 1e-2 * (a.double() @ weight).square().sum()


def test_bfloat16_tokens_that_are_almost_alike():
    """Sums of products that were rounded to bfloat16 would not be positive definite."""
    generator = torch.Generator().manual_seed(0)
    a = (torch.randn(4000, 1, generator=generator) + 0.1 * torch.randn(4000, 512, generator=generator)).bfloat16()
    y = a[:, :4] - a[:, 4:8]
    found = fit(a, y).solve(torch.zeros(512, 4, dtype=torch.float64))
    assert (a.double() @ found - y).square().mean() < 0.1 * y.double().square().mean()


def test_float16_holds_what_its_sums_do_not():
    """Divided by a small root mean square, or multiplied by a weight, numbers leave its range."""
    a, y, _ = problem(tokens=100)
    a, y, weight = a.half(), y.half(), torch.full((100, 1), 1e5)
    fitted = LeastSquares(a.shape[1], y.shape[1], a.device)
    fitted.add(a, y, held_out=torch.zeros(100, dtype=torch.bool), weight=weight)
    fitted.add(a * 0 + 4e4, y * 0 + 4e4, held_out=torch.zeros(100, dtype=torch.bool), weight=2.0)
    gram, cross = gram_and_cross(fitted)
    a, y = a.double(), y.double()
    torch.testing.assert_close(gram[0], 1e10 * a.T @ a + 100 * 8e4**2, rtol=1e-4, atol=1e6)
    torch.testing.assert_close(cross[0], 1e10 * a.T @ y + 100 * 8e4**2, rtol=1e-4, atol=1e6)


def test_positive_weights_are_the_best_ones_that_are_positive():
    """Without the bound, some would be negative."""
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(4000, 6, generator=generator)
    weight = torch.tensor([2.0, 0.0, 0.5, -0.7, 1.5, 0.1])
    y = (a @ weight[:, None] + 0.01 * torch.randn(4000, 1, generator=generator)).clamp_min(0)
    found = fit(a, y).solve_positive().float()

    def loss(w):
        return (a @ w - y[:, 0]).square().sum().item()

    assert found.shape == (6,) and (found > 0).all() and torch.linalg.lstsq(a, y).solution.min() < -0.1
    nudged = [(found + step * axis).clamp_min(0) for axis in torch.eye(6) for step in (-0.03, 0.03)]
    assert all(loss(found) < 1.002 * loss(each) for each in nudged)


def test_positive_weights_stay_ones_where_nothing_is_better():
    a = torch.rand(800, 5, generator=torch.Generator().manual_seed(0))
    found = fit(a, a.sum(1, keepdim=True)).solve_positive()
    torch.testing.assert_close(found, torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("groups, dtype", [(1, torch.float32), (3, torch.float32), (3, torch.float64)])
def test_a_regression_takes_the_memory_that_it_says(monkeypatch, groups, dtype):
    # What these take is small beside larger matrices.
    monkeypatch.setattr("optimum_slicegpt.linalg.ridge.JUDGED_OUTPUTS", 4)
    a, y, weight = problem(tokens=1200, inputs=512, outputs=128, noise=1.0)
    with pretend_gpu() as gpu:
        a, y, weight = (each.to("cuda") for each in (a, y, weight))
        given, prior = gpu.reset_peak(), 0.5 * weight
        fitted = LeastSquares(512, 128, a.device, groups, dtype)
        for group, part in enumerate(torch.arange(1200).chunk(groups)):
            fitted.add(a[part], y[part], held_out=part % 8 == 7, group=group)
        fitted.finish()
        gpu.reset_peak()
        found = fitted.solve(prior)
        fitted.delete_inputs(slice(0, 512), 150, found)
    assert not torch.equal(found, prior)
    assert 0.8 < (gpu.peak - given) / bytes_needed(512, 128, groups, dtype) < 1.2
