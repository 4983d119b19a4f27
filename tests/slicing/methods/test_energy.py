"""Neurons shared out among layers: some MLPs keep more than others."""

import pytest
import torch
from exactness import layers_of, with_float64_norms, writer_of
from shapes import LAYERS
from tiny import TINY, WITH_NEURONS, build, calibration, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.data.batches import TokenBatches
from optimum_slicegpt.export import export_stock
from optimum_slicegpt.modeling.configuration_sliced import sliced_config_class
from optimum_slicegpt.modeling.contexts import evaluating
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import family_of, num_neurons
from optimum_slicegpt.planning.sizes import flops_per_token
from optimum_slicegpt.reports.report import sliced_facts
from optimum_slicegpt.reports.text import list_settings
from optimum_slicegpt.slicing.methods.energy import MOST_DELETED, neurons_by_layer
from optimum_slicegpt.slicing.run import Computation
from optimum_slicegpt.slicing.state import Statistics
from optimum_slicegpt.slicing.statistics import DensePass
from optimum_slicegpt.storage.base import InMemory


NEURONS = 40
STEPS = {"round_to": 4, "round_neurons_to": 4}


def lopsided(name, **overrides):
    """A model whose first MLP adds far less to the stream than its second."""
    model = build(name, **overrides)
    with torch.no_grad():
        writer_of(layers_of(model)[0], model).weight.mul_(0.01)
    return model


def idle_first(name):
    """A model whose first MLP adds nothing."""
    model = with_float64_norms(build(name))
    with torch.no_grad():
        writer_of(layers_of(model)[0], model).weight.zero_()
    return model


def sliced(model, **kwargs):
    settings = {"sparsity": 0.25, "mlp_sparsity": 0.5, "schedule": "energy", **STEPS, "dataset": calibration(8)}
    return model.compress(SliceGPTConfig(**settings | kwargs))


# The numbers


def costs(*scales, neurons=64):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.rand(neurons, generator=generator, dtype=torch.float64) for scale in scales]


@pytest.mark.parametrize("round_to", [1, 3, 8, 64])
@pytest.mark.parametrize("mean", [1, 5, 32, 48, 63, 64])
def test_numbers_add_up_within_their_bounds(mean, round_to):
    found = neurons_by_layer(costs(0.01, 1, 3, 100), mean, round_to)
    assert sum(found) == 4 * mean
    assert max(found) <= 64
    assert min(found) >= max(1, 64 - MOST_DELETED * (64 - mean) - round_to)
    assert found == sorted(found)
    if mean % 8 == 0 and round_to == 8:
        assert all(count % 8 == 0 for count in found)


def test_one_more_neuron_would_save_as_much_in_every_layer():
    given = costs(0.6, 1, 1.4)
    found = neurons_by_layer(given, 40)
    assert len(set(found)) == 3
    cheapest_kept = [cost.sort(descending=True).values[count - 1] for cost, count in zip(given, found, strict=True)]
    dearest_deleted = [cost.sort(descending=True).values[count] for cost, count in zip(given, found, strict=True)]
    assert min(cheapest_kept) > max(dearest_deleted)


def test_equal_costs_give_equal_numbers():
    assert neurons_by_layer(costs(1) * 3, 40, 8) == [40] * 3


# The costs


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_NEURONS)
def test_costs_are_what_neurons_add_to_the_stream(name):
    model = build(name)
    family = family_of(model.config)
    batch = calibration(1)[0] | {"attention_mask": torch.ones(2, 24, dtype=torch.long)}
    batch["attention_mask"][0, -5:] = 0
    real, active, after = batch["attention_mask"].bool(), [], []
    for layer in layers_of(model):
        read = layer.get_submodule(family.mlp_writer)
        read.register_forward_pre_hook(lambda _, args: active.append(args[0].view(2, 24, -1)[real]))
        layer.register_forward_hook(
            lambda _, args, out: after.append((out[0] if isinstance(out, tuple) else out).view(2, 24, -1)[real])
        )
    model(**batch)
    expected = []
    for layer, neurons, stream in zip(layers_of(model), active, after, strict=True):
        layer._forward_hooks.clear()
        layer.get_submodule(family.mlp_writer)._forward_pre_hooks.clear()
        if family.layer_norm:
            stream = stream - stream.mean(-1, keepdim=True)
        relative = neurons.square() / stream.square().mean(-1, keepdim=True)
        expected.append(relative.sum(0) * writer_of(layer, model).weight.square().sum(-1))

    config = SliceGPTConfig()
    run, statistics = (
        Computation(model, TokenBatches([batch], "tokens"), config, InMemory(model, config)),
        Statistics(),
    )
    with evaluating(model):
        statistics.streams = [run.start()]
        for measure in DensePass(run, statistics, costs=True).steps():
            measure()
    for found, costs_of_layer in zip(statistics.costs, expected, strict=True):
        torch.testing.assert_close(found, costs_of_layer, rtol=1e-4, atol=1e-4 * costs_of_layer.max().item())


# The models


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_NEURONS)
def test_every_family_is_saved_and_loaded(tmp_path, name):
    dense = lopsided(name)
    config = SliceGPTConfig(sparsity=0.25, mlp_sparsity=0.5, schedule="energy", **STEPS)
    plan = SlicePlan.from_config(config, dense.config)
    predicted = plan.num_parameters(dense)
    model = sliced(dense)
    sizes = model.config.intermediate_sizes
    assert sizes[0] < sizes[1] == num_neurons(model.config)
    assert sum(sizes) == LAYERS * plan.neurons
    assert [writer_of(layer, model).weight.shape[-2] for layer in layers_of(model)] == sizes
    assert model.num_parameters() == predicted
    assert model.config.slicegpt["schedule"] == "energy"

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits, rtol=1e-6, atol=1e-6)
    assert model.generate(tokens(1, 4), max_new_tokens=4, min_new_tokens=4).shape == (1, 8)


def test_operations_are_counted_layer_by_layer():
    uniform, energy = sliced(build("phi3"), schedule="uniform"), sliced(lopsided("phi3"))
    assert energy.config.intermediate_sizes
    assert flops_per_token(Decoder(energy)) == flops_per_token(Decoder(uniform))


@torch.no_grad()
def test_an_mlp_that_is_idle_loses_most():
    model = idle_first("llama")
    expected = model(tokens(seed=7)).logits
    uniform, energy = (
        with_float64_norms(sliced(idle_first("llama"), sparsity=0, mlp_sparsity=0.4, schedule=schedule))
        for schedule in ("uniform", "energy")
    )
    assert energy.config.intermediate_sizes == [12, 36]
    errors = [relative_error(each(tokens(seed=7)).logits, expected) for each in (uniform, energy)]
    assert errors[1] < errors[0]


def test_numbers_are_multiples_of_the_default_step():
    model = sliced(lopsided("llama"), round_to=None, round_neurons_to=None)
    fewest, most = model.config.intermediate_sizes
    assert fewest < most and fewest % 2 == most % 2 == 0


def test_equal_numbers_leave_an_architecture_of_the_family():
    model = build("llama")
    with torch.no_grad():
        for layer in layers_of(model):
            layer.mlp.down_proj.weight.zero_()
    model = sliced(model, round_neurons_to=20, widths=[36] * 5, sparsity=None)
    assert model.config.intermediate_sizes is None and model.config.intermediate_size == 20
    assert type(export_stock(model)).__name__ == "LlamaForCausalLM"


def test_what_differs_in_size_is_refused_by_stock_classes():
    with pytest.raises(ValueError, match=r"intermediate_sizes holds \d+ to \d+, and no .*schedule='uniform'"):
        export_stock(sliced(lopsided("llama")))


def test_cards_and_reports_say_how_many_neurons_are_kept():
    model = sliced(lopsided("llama"))
    fewest, most = model.config.intermediate_sizes
    assert list_settings(model.config, model.config.slicegpt)["Neurons kept in each MLP"] == f"{fewest} to {most}"
    assert sliced_facts(model.config, model.config.slicegpt)["neurons per MLP"] == f"{fewest} to {most}"


def test_experts_have_no_neurons_to_share():
    with pytest.raises(ValueError, match="schedule='energy', but a mixtral model keeps all .* leave schedule out"):
        build("mixtral").compress(SliceGPTConfig(schedule="energy", dataset=calibration()))


@pytest.mark.parametrize("sizes", [[40], [40, 0], [40, 39, 40], [32, 36]])
def test_configurations_that_do_not_fit_are_refused(sizes):
    with pytest.raises(Exception, match=r"intermediate_sizes=.* each of 2 layers, .* is 40, by intermediate_size"):
        sliced_config_class("llama")(**TINY["llama"], intermediate_sizes=sizes)
