"""
Where there is a GPU: what it computes is what the CPU computes. `test_devices.py` has the same on a pretend one, which
knows nothing of how kernels round. So models are in float64 here: what mistakes do is far above its rounding errors.
"""

from itertools import product

import pytest
import torch
from tensors import generator
from tiny import build, calibration, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity
from optimum_slicegpt.linalg.axes import deletion_loss, shared_axes


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS = {
    "default": {"parameter_reduction": 0.2},
    "neurons": {"sparsity": 0.2, "mlp_sparsity": 0.3},
    "energy": {"sparsity": 0.2, "mlp_sparsity": 0.3, "schedule": "energy"},
    "per_block": {"sparsity": 0.3, "rotation": "per_block", "refit": False},
    "offloaded": {"parameter_reduction": 0.2, "offload_activations": True},
}
FISHER = {"parameter_reduction": 0.2, "metric": "fisher"}


def sliced(name, settings, dtype=torch.float64, **kwargs):
    return build(name, dtype).compress(SliceGPTConfig(**settings, dataset=calibration(), **kwargs))


@torch.no_grad()
@pytest.mark.parametrize(
    "name, method",
    [
        *product(["llama", "opt", "phi3"], METHODS),
        *product(["mixtral"], sorted(METHODS.keys() - {"neurons", "energy"})),  # experts keep theirs
    ],
)
def test_slicing_on_a_gpu_a_model_in_host_memory(name, method):
    expected, found = sliced(name, METHODS[method]), sliced(name, METHODS[method], device="cuda")
    assert {parameter.device.type for parameter in found.parameters()} == {"cpu"}
    assert relative_error(found(tokens()).logits, expected(tokens()).logits) < 1e-5
    assert found.config.slicegpt["energy_kept"] == pytest.approx(expected.config.slicegpt["energy_kept"], abs=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_narrower_dtypes(dtype, tolerance):
    expected = sliced("llama", METHODS["default"], dtype)
    found = sliced("llama", METHODS["default"], dtype, device="cuda")
    assert relative_error(found(tokens()).logits, expected(tokens()).logits) < tolerance


def test_axes_weighted_by_fisher_cost_as_much():
    """A search ends where rounding leads it, among axes that are equally good."""
    draws = (
        torch.randn(2, 3, 200, 24, generator=generator(), dtype=torch.float64) * torch.linspace(0.1, 3, 24).double()
    )
    moments, metrics = ([x.T @ x / 200 + torch.eye(24) for x in sites] for sites in draws)
    costs = []
    for device in ("cpu", "cuda"):
        axes = shared_axes([each.to(device) for each in moments], [each.to(device) for each in metrics], width=16)
        deleted = torch.linalg.qr(axes.cpu(), mode="complete")[0][:, 16:]
        costs.append(deletion_loss(deleted, moments, metrics)[0].item())
    assert costs[1] == pytest.approx(costs[0], rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "opt", "mixtral"])
def test_models_sliced_by_fisher_are_as_good(name):
    batches = [{"input_ids": tokens()}]
    expected, found = sliced(name, FISHER), sliced(name, FISHER, device="cuda")
    losses = [evaluate_perplexity(model, batches).nll for model in (expected, found)]
    assert losses[1] == pytest.approx(losses[0], abs=0.01)
    assert found.config.slicegpt["energy_kept"] == pytest.approx(expected.config.slicegpt["energy_kept"], abs=1e-3)


@torch.no_grad()
def test_slicing_a_model_on_a_gpu(tmp_path):
    model = build("llama", torch.float32).to("cuda")
    model.compress(SliceGPTConfig(**METHODS["default"], dataset=calibration()))
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert relative_error(loaded(tokens()).logits, model(tokens().to("cuda")).logits.cpu()) < 1e-5


def test_measuring_on_a_gpu_a_model_in_host_memory():
    model, batches = build("llama"), calibration()
    expected = evaluate_perplexity(model, batches)
    assert evaluate_perplexity(model, batches, device="cuda").nll == pytest.approx(expected.nll, rel=1e-9)
    assert model.device.type == "cpu"
