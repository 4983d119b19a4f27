"""Where there is a GPU: a model in host memory that is sliced on it, layer by layer, is the one sliced on the CPU."""

from itertools import product

import pytest
import torch
from tiny import build, calibration, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS = {
    "default": {"parameter_reduction": 0.2},
    "neurons": {"sparsity": 0.2, "mlp_sparsity": 0.3},
    "fisher": {"parameter_reduction": 0.2, "metric": "fisher"},
    "per_block": {"sparsity": 0.3, "rotation": "per_block", "refit": False},
    "offloaded": {"parameter_reduction": 0.2, "offload_activations": True},
}


def sliced(name, method, **kwargs):
    model = build(name, torch.float32)
    return model.compress(SliceGPTConfig(**METHODS[method], dataset=calibration(), **kwargs))


@torch.no_grad()
@pytest.mark.parametrize(
    "name, method",
    [
        *product(["llama", "opt", "phi3"], METHODS),
        *product(["mixtral"], sorted(METHODS.keys() - {"neurons"})),  # experts keep theirs
    ],
)
def test_slicing_on_a_gpu_a_model_in_host_memory(name, method):
    expected, found = sliced(name, method), sliced(name, method, device="cuda")
    assert {parameter.device.type for parameter in found.parameters()} == {"cpu"}
    assert relative_error(found(tokens()).logits, expected(tokens()).logits) < 1e-2


@torch.no_grad()
def test_slicing_a_model_on_a_gpu(tmp_path):
    model = build("llama", torch.float32).to("cuda")
    model.compress(SliceGPTConfig(**METHODS["default"], dataset=calibration()))
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert relative_error(loaded(tokens()).logits, model(tokens().to("cuda")).logits.cpu()) < 1e-3
