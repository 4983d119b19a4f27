"""`fit_memory`: weights and cache that take no more than some memory."""

import pytest
import torch
from configurations import SMOL
from tiny import build, calibration

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.decoder import empty_model
from optimum_slicegpt.planning.memory import cache_bytes


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral", "mixtral", "biogpt", "qwen3_next", "mamba"])
def test_the_cache_is_that_of_the_model(name):
    model = build(name, torch.float32)
    output = model(input_ids=torch.ones(1, 20, dtype=torch.long), use_cache=True)
    cache = output.get("past_key_values") or output["cache_params"]
    found = []
    for layer in cache.layers:
        found += [layer.keys, layer.values] if hasattr(layer, "keys") else []
        found += (
            [*layer.conv_states.values(), *layer.recurrent_states.values()] if hasattr(layer, "conv_states") else []
        )
    assert cache_bytes(model.config, 20) == sum(each.nbytes for each in found) > 0


def bytes_of(config):
    plan = SlicePlan.from_config(config, SMOL)
    plan.check_rest(config, SMOL)
    model = empty_model(SMOL)
    return plan.num_parameters(model) * model.dtype.itemsize


def test_weights_are_counted_as_the_model_has_them():
    """`model.to` leaves the dtype of the configuration as it was."""
    model = build("llama", torch.float32).to(torch.bfloat16)
    memory = int(0.8 * 2 * model.num_parameters())
    model.compress(SliceGPTConfig(fit_memory=memory, dataset=calibration(), refine=0, round_neurons_to=1))
    assert 0.9 * memory < 2 * model.num_parameters() <= memory


def test_weights_and_cache_fit():
    dense = empty_model(SMOL)
    weights, cache = dense.num_parameters() * dense.dtype.itemsize, cache_bytes(SMOL, 4096)
    without = bytes_of(SliceGPTConfig(fit_memory=int(0.8 * weights)))
    assert 0 <= 0.8 * weights - without < 0.02 * weights
    assert bytes_of(SliceGPTConfig(fit_memory=int(0.8 * weights) + cache, context=4096)) == without


@pytest.mark.parametrize(
    "memory, settings, message",
    [
        ("100GB", {}, ": the dense model fits, with weights of .* GB and a cache of .* for context=512; give less"),
        ("1MB", {}, " is too little for weights of .*; give a shorter context"),
        ("24MB", {}, " with context=512 cannot be reached: the smallest size is larger"),
        ("60MB", {"embeddings": "tied"}, " with context=512 cannot be reached: parameter_reduction=.* is out of"),
    ],
)
def test_what_cannot_fit_is_refused(memory, settings, message):
    with pytest.raises(ValueError, match=f"fit_memory='{memory}'{message}"):
        SlicePlan.from_config(SliceGPTConfig(fit_memory=memory, context=512, **settings), SMOL)
