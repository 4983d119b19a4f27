"""Several sizes from one pass over the dense model, and the size that keeps a loss."""

import re

import pytest
import torch
from tiny import build, calibration

from optimum_slicegpt import SliceGPTConfig, SliceGPTQuantizer, quantizer


METHODS = {
    "default": {"refine": 2},
    "paper": {"rotation": "per_block", "refit": False, "orientation": "random"},
    "energy": {"schedule": "energy", "metric": "fisher", "refine": 0},
}
SIZES = [0.1, 0.3]


@pytest.mark.parametrize(
    ("name", "method"), [("llama", "default"), ("opt", "paper"), ("qwen2", "energy"), ("gemma2", "default")]
)
def test_each_size_is_that_of_a_run_of_its_own(name, method):
    settings = METHODS[method] | {"dataset": calibration()}
    model = build(name, torch.float32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = SliceGPTQuantizer(SliceGPTConfig(**settings)).quantize_to_sizes(model, SIZES)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len({each.num_parameters() for each in found}) == 2 and all(each.training for each in found)
    for size, sliced in zip(SIZES, found, strict=True):
        alone = build(name, torch.float32).compress(SliceGPTConfig(parameter_reduction=size, **settings))
        assert type(sliced) is type(alone) and sliced.config.slicegpt["parameter_reduction"] == size
        assert all(torch.equal(value, sliced.state_dict()[key]) for key, value in alone.state_dict().items())


def test_the_dense_model_is_computed_once():
    calls, model = [], build("llama", torch.float32)
    model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(len(calls)))
    quantizer = SliceGPTQuantizer(SliceGPTConfig(dataset=calibration(), refine=0))
    counts = []
    for sizes in (SIZES[-1:], SIZES):
        quantizer.quantize_to_sizes(model, sizes)
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1] > 0


OWN_TEXT = {"dataset": "self", "nsamples": 16, "seqlen": 16, "refine": 0}


def sure():
    """Builds a model that is at home in nothing but its own text."""
    model = build("llama", torch.float32, vocab_size=98)
    with torch.no_grad():
        model.lm_head.weight *= 5
    return model


def test_the_smallest_size_within_a_limit(caplog, capsys, monkeypatch):
    model, before = sure(), sure()
    monkeypatch.setattr(quantizer, "error_for", lambda limit: 1e-4)
    model.compress(SliceGPTConfig(max_loss=0.04, **OWN_TEXT))
    check, reduction = (model.config.slicegpt[key] for key in ("check", "parameter_reduction"))
    assert check["max_loss"] == 0.04 >= check["loss"] > 0.03 and check["stderr"] < 0.01
    losses = list(check["sizes"].values())  # of the largest model first
    position = losses.index(check["loss"])
    assert losses[position + 1] > 0.04 and len(losses) <= 10
    assert len(re.findall(r"% fewer .* lose -?0.\d+ .*; 0.04 may be lost", capsys.readouterr().err)) == len(losses)
    assert re.search(rf"The loss of {check['loss']:.3f} nats is known to ± 0.0\d+ only. More text that", caplog.text)
    alone = before.compress(SliceGPTConfig(parameter_reduction=reduction, **OWN_TEXT))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in alone.state_dict().items())


def test_a_limit_that_no_size_keeps_leaves_the_model_dense():
    model, before = sure(), sure().state_dict()
    with pytest.raises(ValueError, match=r"max_loss=0.001: .*% fewer parameters, the least .*, lose more, 0.*All"):
        model.compress(SliceGPTConfig(max_loss=0.001, mlp_sparsity=0.8, round_neurons_to=8, **OWN_TEXT))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_limit_needs_text():
    with pytest.raises(ValueError, match="max_loss=0.1, but there is no text to measure it on: calibration data of"):
        build("llama", torch.float32).compress(SliceGPTConfig(max_loss=0.1, dataset=calibration()))
