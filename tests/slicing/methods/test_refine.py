"""MLPs that are trained for some steps after they have lost neurons."""

import weakref

import pytest
import torch
from tiny import build, calibration, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.data.batches import TokenBatches
from optimum_slicegpt.slicing.methods import refine, refit
from optimum_slicegpt.streaming import compress_checkpoint


ENOUGH = [{"input_ids": tokens(32, 48, seed=seed)} for seed in range(4)]
"""Calibration tokens that do not let an MLP of tiny models learn them by heart."""
EXPERTS = ("mixtral", "qwen3_moe-dense_and_sparse")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(refine, "STEP_TOKENS", 512)


def sliced(name, data=ENOUGH, dtype=torch.float32, **settings):
    model = build(name).to(dtype)
    settings = {"sparsity": 0, "architecture": "sliced", "refine": 0, "dataset": data} | settings
    return model.compress(SliceGPTConfig(mlp_sparsity=None if name in EXPERTS else 0.5, **settings))


def error(model, dense):
    with torch.no_grad():
        return (model(tokens(16, 48, seed=7)).logits - dense(tokens(16, 48, seed=7)).logits).square().mean().item()


@pytest.mark.parametrize("name", ["gemma", "phi3", "falcon-two_norms", "gpt2", "gemma2", "exaone4"])
def test_a_trained_mlp_follows_the_dense_model_better(name):
    dense = build(name)
    before, after, longer = (error(sliced(name, refine=steps), dense) for steps in (0, 10, 30))
    assert longer < after < before


def test_more_tokens_are_worth_more_steps(monkeypatch):
    monkeypatch.setattr(refine, "STEPS", 2)
    monkeypatch.setattr(refine, "ENOUGH_TOKENS", 32 * 48)
    model, expected = sliced("llama", ENOUGH[:3], refine=None), sliced("llama", ENOUGH[:3], refine=6)
    assert model.config.slicegpt["refine"] == 6
    for one, other in zip(weights(model), weights(expected), strict=True):
        assert torch.equal(one, other)


def test_half_precision_is_trained_in_float32():
    dense, name = build("llama"), "llama"
    before, after = (error(sliced(name, dtype=torch.bfloat16, refine=steps).float(), dense) for steps in (0, 40))
    assert after < 0.98 * before


def weights(model):
    return [parameter.detach() for parameter in model.parameters()]


def test_weights_stay_where_training_learns_tokens_by_heart():
    few = calibration(2)
    for before, after in zip(weights(sliced("llama", few)), weights(sliced("llama", few, refine=20)), strict=True):
        assert torch.equal(before, after)


def test_one_kind_of_text_is_not_served_at_the_expense_of_another(monkeypatch):
    errors = iter([torch.tensor([1.0, 1.0]), torch.tensor([0.1, 1.1])] * 2)
    monkeypatch.setattr(refine.Refinement, "_held_out_errors", lambda self: next(errors))
    data = TokenBatches(ENOUGH, "two kinds", (0, 0, 1, 1))
    for before, after in zip(weights(sliced("llama", data)), weights(sliced("llama", data, refine=20)), strict=True):
        assert torch.equal(before, after)


def test_nothing_is_trained_where_a_kind_of_text_has_nothing_to_judge_by(monkeypatch):
    monkeypatch.setattr(refine.Refinement, "_optimise", lambda *args: pytest.fail("trained in vain"))
    sliced("llama", TokenBatches([*ENOUGH, {"input_ids": tokens(1, 6)}], "one short", (0, 0, 0, 0, 1)), refine=20)


def test_sums_of_a_regression_are_freed_before_training(monkeypatch):
    sums, alive, train = weakref.WeakSet(), [], refine.Refinement.train
    init = refit.LeastSquares.__init__
    monkeypatch.setattr(refit.LeastSquares, "__init__", lambda self, *args: init(self, *args) or sums.add(self))
    monkeypatch.setattr(refine.Refinement, "train", lambda *args: alive.append(len(sums)) or train(*args))
    sliced("llama", ENOUGH[:1], refine=1)
    assert alive == [0, 0]


def test_tokens_are_held_once_while_an_mlp_is_trained(monkeypatch):
    goals, alive, init, train = weakref.WeakSet(), [], refine.Goal.__init__, refine.Refinement.train
    monkeypatch.setattr(refine.Goal, "__hash__", object.__hash__)
    monkeypatch.setattr(refine.Goal, "__init__", lambda self, *a, **kw: init(self, *a, **kw) or goals.add(self))
    monkeypatch.setattr(refine.Refinement, "train", lambda *args: alive.append(len(goals)) or train(*args))
    sliced("llama", ENOUGH[:1], refine=1)
    assert alive == [0, 0]


def test_experts_stay_as_they_are():
    after = sliced("mixtral", refine=20)
    for values, others in zip(weights(sliced("mixtral")), weights(after), strict=True):
        assert torch.equal(values, others)
    assert after.config.slicegpt["refine"] == 0


def test_nothing_is_trained_without_a_fit():
    rotated = build("llama").compress(SliceGPTConfig(sparsity=1 / 3, refine=20, refit=False, dataset=ENOUGH))
    assert rotated.config.slicegpt["refine"] == 0


def test_a_dense_layer_among_sparse_ones_is_trained():
    name, few = "qwen3_moe-dense_and_sparse", ENOUGH[:2]
    before, after = (sliced(name, few, sparsity=1 / 3, refine=steps).model.layers[0].mlp for steps in (0, 10))
    assert not torch.equal(before.down_proj.weight, after.down_proj.weight)


def test_streaming_gives_the_same(tmp_path):
    build("llama").save_pretrained(tmp_path / "dense")
    settings = {"mlp_sparsity": 0.5, "sparsity": 0, "refine": 5, "dataset": ENOUGH[:2]}
    compress_checkpoint(tmp_path / "dense", tmp_path / "sliced", SliceGPTConfig(**settings))
    streamed = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced")
    expected = build("llama").compress(SliceGPTConfig(**settings))
    assert streamed.config.slicegpt["refine"] == 5
    for one, other in zip(weights(streamed), weights(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_steps_are_counted(value):
    with pytest.raises(ValueError, match="refine=.* give a number of steps, 0 for none, or None for as many"):
        SliceGPTConfig(refine=value)
