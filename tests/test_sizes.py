"""Several sizes from one pass over the dense model."""

import pytest
import torch
from tiny import build, calibration

from optimum_slicegpt import SliceGPTConfig, SliceGPTQuantizer


METHODS = {
    "default": {"refine": 2},
    "paper": {"rotation": "per_block", "refit": False, "orientation": "random"},
    "energy": {"schedule": "energy", "metric": "fisher", "refine": 0},
}
SIZES = [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("name", "method"), [("llama", "default"), ("opt", "paper"), ("qwen2", "energy"), ("gemma2", "default")]
)
def test_each_size_is_that_of_a_run_of_its_own(name, method):
    settings = METHODS[method] | {"dataset": calibration()}
    model = build(name, torch.float32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = SliceGPTQuantizer(SliceGPTConfig(**settings)).quantize_to_sizes(model, SIZES)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len({each.num_parameters() for each in found}) == 3 and all(each.training for each in found)
    for size, sliced in zip(SIZES, found, strict=True):
        alone = build(name, torch.float32).compress(SliceGPTConfig(parameter_reduction=size, **settings))
        assert type(sliced) is type(alone) and sliced.config.slicegpt["parameter_reduction"] == size
        assert all(torch.equal(value, sliced.state_dict()[key]) for key, value in alone.state_dict().items())


def test_the_dense_model_is_computed_once():
    calls, model = [], build("llama", torch.float32)
    model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(len(calls)))
    quantizer = SliceGPTQuantizer(SliceGPTConfig(dataset=calibration(), refine=0))
    counts = []
    for sizes in ([0.2], SIZES):
        quantizer.quantize_to_sizes(model, sizes)
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1] > 0
