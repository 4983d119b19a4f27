"""A run that fails at any operation, as for lack of memory, leaves nothing behind: the model is the dense one."""

import copy
import random

import pytest
import torch
from interruptions import Fault, hash_files
from tiny import TEST_ALL, build, calibration

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.linalg.products import FAST_PRODUCTS
from optimum_slicegpt.streaming import compress_checkpoint


METHODS = {
    "default": {"dtype": "bfloat16"},  # so that layers are converted
    "fisher": {"metric": "fisher", "refine": 0},
    "energy": {"schedule": "energy", "mlp_sparsity": 0.3, "refine": 0},
    "paper": {"rotation": "per_block", "refit": False, "orientation": "random"},
}
FAULTS = 300 if TEST_ALL else 40
"""Faults of all methods together, and a twentieth of as many while streaming."""


def config_of(method):
    return SliceGPTConfig(**{"sparsity": 1 / 3, "dataset": calibration(batches=2)} | METHODS[method])


def condition(model):
    """Returns all that a run could leave behind: on a model, and in the process."""
    tensors = {name: (each.data_ptr(), each.dtype) for name, each in model.state_dict(keep_vars=True).items()}
    modules = {name: {key: outline(value) for key, value in vars(module).items()} for name, module in children(model)}
    process = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_device(),
        torch.get_rng_state().tolist(),
        getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None),
        FAST_PRODUCTS.locked(),
    )
    return type(model), model.training, model.config.to_dict(), tensors, modules, process


def outline(value):
    """Returns what can be compared of an attribute: of hooks, and of tensors, which of them there are."""
    return list(value) if isinstance(value, dict) else None if isinstance(value, torch.Tensor) else repr(value)


def children(model):
    """Returns all modules in a model by name: their forwards, hooks and modes are among their attributes."""
    return [(name, module) for name, module in model.named_modules() if name]


def values_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def places(method, count, run):
    """Draws at which operations of a run to fail."""
    with Fault() as counted:
        run()
    return sorted(random.Random(method).sample(range(1, counted.count + 1), count))


@pytest.mark.parametrize("method", METHODS)
def test_a_fault_at_any_operation_leaves_the_dense_model(method):
    model = build("llama", torch.float32, attention_dropout=0.1).train()
    model.model.layers[0].eval()
    model.config.output_hidden_states = True
    before, values = condition(model), values_of(model)
    twin = copy.deepcopy(model)
    for at in places(method, FAULTS // 4, lambda: twin.compress(config_of(method))):
        with pytest.raises(torch.OutOfMemoryError), Fault(at):
            model.compress(config_of(method))
        assert condition(model) == before, f"after operation {at}"
    assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())


def test_a_streamed_run_resumes_after_a_fault_at_any_operation(tmp_path):
    dense, expected = tmp_path / "dense", tmp_path / "expected"
    build("llama", torch.float32).save_pretrained(dense)
    counted = places("streaming", FAULTS // 20, lambda: compress_checkpoint(dense, expected, config_of("default")))
    for at in counted:
        output = tmp_path / f"after-{at}"
        with pytest.raises(torch.OutOfMemoryError), Fault(at):
            compress_checkpoint(dense, output, config_of("default"))
        assert not output.exists()
        compress_checkpoint(dense, output, config_of("default"), resume=True)
        assert hash_files(output) == hash_files(expected)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
