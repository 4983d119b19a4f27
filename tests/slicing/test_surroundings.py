"""What a caller has set for torch, or on a model, does not show in the result."""

import copy
from contextlib import contextmanager, nullcontext
from threading import Thread

import pytest
import torch
from interruptions import hash_files
from tiny import build, calibration, tokens
from torch import nn
from torch.nn.utils import prune

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches
from optimum_slicegpt.evaluation.spectrum import measure_spectrum
from optimum_slicegpt.linalg.products import FAST_PRODUCTS, float32_products_of
from optimum_slicegpt.streaming import compress_checkpoint


@contextmanager
def other_defaults():
    """Makes new tensors float64, and on `meta`."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "other defaults": other_defaults,
    "gradients": torch.enable_grad,
}
METHODS = {
    "default": {"parameter_reduction": 0.2},
    "fisher": {"sparsity": 0.25, "metric": "fisher", "refine": 0},
    "paper": {"sparsity": 0.25, "rotation": "per_block", "refit": False, "orientation": "random"},
}


@pytest.fixture(scope="module")
def expected():
    return {method: sliced(method).state_dict() for method in METHODS}


def config_of(method):
    return SliceGPTConfig(**METHODS[method], dataset=calibration())


def sliced(method, model=None):
    return (model or build("opt", torch.float32)).compress(config_of(method))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("method, name", [*zip(["paper", "fisher", "default", "fisher"], SURROUNDINGS, strict=True)])
def test_slicing_is_the_same_in_any_surroundings(expected, method, name):
    model, config = build("opt", torch.float32), config_of(method)
    with SURROUNDINGS[name]():
        model.compress(config)
    assert_same(model.state_dict(), expected[method])
    model(tokens(), labels=tokens()).loss.backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


def test_tokens_that_were_made_in_inference_mode(expected):
    with torch.inference_mode():
        config = config_of("fisher")
        model = build("llama", torch.float32)
    assert_same(build("opt", torch.float32).compress(config).state_dict(), expected["fisher"])
    with pytest.raises(ValueError, match="holds tensors of torch.inference_mode, with which nothing can be trained"):
        model.compress(config)


@pytest.mark.parametrize("name", ["inference mode", "other defaults"])
def test_streaming_is_the_same_in_any_surroundings(tmp_path, name):
    build("llama", torch.float32).save_pretrained(tmp_path / "dense")
    for output, surroundings in (("expected", nullcontext), ("found", SURROUNDINGS[name])):
        config = config_of("paper")
        with surroundings():
            compress_checkpoint(tmp_path / "dense", tmp_path / output, config)
    assert hash_files(tmp_path / "found") == hash_files(tmp_path / "expected")


def test_measuring_is_the_same_in_any_surroundings():
    model, batches = build("llama", torch.float32), load_batches(calibration())
    expected, spectrum = evaluate_perplexity(model, batches), measure_spectrum(model, batches)
    for name in ("inference mode", "other defaults"):
        with SURROUNDINGS[name]():
            assert evaluate_perplexity(model, batches) == expected
            found = measure_spectrum(model, batches)
        assert all(torch.equal(found.energy[basis], rows) for basis, rows in spectrum.energy.items())


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no such switch")
def test_one_thread_at_a_time_switches_how_exact_products_are():
    """The switch is one for all threads: who comes second would take the first one's setting for the original."""
    entered = []

    def enter():
        with float32_products_of(torch.bfloat16):
            entered.append(1)

    second = Thread(target=enter)
    with float32_products_of(torch.bfloat16):
        second.start()
        assert FAST_PRODUCTS.locked() and not entered
    second.join()
    assert entered and not FAST_PRODUCTS.locked()


MIXED = {
    "llama": ("model.norm", "lm_head"),  # computes as it is
    "mixtral": ("model.layers.0.mlp.gate", "model.layers.1.mlp.gate"),
    "opt": ("model.decoder.layers.0.final_layer_norm", "model.decoder.final_layer_norm"),
    "gpt2": ("transformer.h.1.mlp", "transformer.ln_f"),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_model_of_two_dtypes_becomes_one_of_its_own_dtype(name):
    model = build(name, torch.bfloat16)
    expected = copy.deepcopy(model).compress(SliceGPTConfig(parameter_reduction=0.2, refine=0, dataset=calibration()))
    for module in MIXED[name]:
        model.get_submodule(module).float()
    model.compress(SliceGPTConfig(parameter_reduction=0.2, refine=0, dataset=calibration()))
    assert_same(model.state_dict(), expected.state_dict())
    assert model(tokens()).logits.isfinite().all()


def test_outputs_that_a_configuration_asks_for_are_left_out():
    plain, asking = ({}, {"output_router_logits": True, "output_hidden_states": True, "return_dict": False})
    models = [sliced("fisher", build("mixtral", torch.float32, **outputs)) for outputs in (plain, asking)]
    assert_same(models[1].state_dict(), models[0].state_dict())
    assert models[1].config.output_router_logits and not models[1].config.return_dict


@pytest.mark.parametrize("name", ["gpt2", "gpt_bigcode", "gpt_neo", "opt", "llama"])
def test_padding_in_front_of_tokens_changes_nothing(name):
    """Models with a table of positions count columns, except OPT, so padding in front moves their positions."""
    lengths = (24, 15, 20)
    rows = [tokens(1, length, seed=length)[0] for length in lengths]
    results = []
    for front in (False, True):
        batch = {key: torch.zeros(3, 24 + 5 * front, dtype=torch.long) for key in ("input_ids", "attention_mask")}
        for index, row in enumerate(rows):
            place = slice(-len(row), None) if front else slice(len(row))
            batch["input_ids"][index, place], batch["attention_mask"][index, place] = row, 1
        config = SliceGPTConfig(**METHODS["paper"] | {"orientation": "pca"}, dataset=[batch])
        results.append(build(name).compress(config)(tokens()).logits)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "change",
    [
        lambda linear: nn.utils.parametrizations.weight_norm(linear),
        lambda linear: nn.utils.parametrizations.orthogonal(linear),
        lambda linear: prune.random_unstructured(linear, "weight", 0.1),
    ],
)
def test_weights_that_are_computed_are_refused(change):
    model = build("llama", torch.float32)
    change(model.model.layers[1].mlp.up_proj)
    with pytest.raises(ValueError, match="The weight of model.layers.1.mlp.up_proj is computed from other tensors"):
        sliced("default", model)
