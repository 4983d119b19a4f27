"""`parameter_reduction`: widths and neurons with which the true number of parameters is what was asked for."""

import logging
from dataclasses import replace

import pytest
import torch
from configurations import SMOL, tiny_config
from tiny import ENDS

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.decoder import empty_model
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.planning.rounding import halvings
from optimum_slicegpt.planning.solver import MOST_NEURONS, NEURONS_FIRST, TOLERANCE, neuron_share
from optimum_slicegpt.slicing.skeleton import build_sliced


def asked(reduction=0.25, **kwargs):
    kwargs = {"rotation": "per_block", "round_to": 8, "round_neurons_to": 8, "architecture": "sliced"} | kwargs
    return SliceGPTConfig(parameter_reduction=reduction, **kwargs)


def solve(model_config, reduction=0.25, **kwargs):
    return SlicePlan.from_config(asked(reduction, **kwargs), model_config)


def found(plan, model_config):
    """Returns the share of the parameters that is deleted, counted on a model."""
    model = empty_model(model_config)
    return 1 - build_sliced(model, plan).num_parameters() / model.num_parameters()


@pytest.mark.parametrize("rotation", ["per_block", "shared"])
@pytest.mark.parametrize(("name", "tied"), ENDS)
def test_tiny_models_land(name, tied, rotation):
    config = tiny_config(name, tied)
    try:
        plan = solve(config, rotation=rotation)
    except ValueError as error:  # Shortcuts of tiny models are as large as what goes.
        assert "out of reach" in str(error) and family_of(config).moe and rotation == "per_block"
        return
    assert plan.embeddings == ("tied" if tied or family_of(config).wide_entry else "sliced")
    miss = abs(found(plan, config) - 0.25)
    if rotation == "shared" and family_of(config).moe:
        one_more, one_less = (replace(plan, widths=tuple(width + step for width in plan.widths)) for step in (1, -1))
        nearest = min(abs(found(other, config) - 0.25) for other in (one_more, one_less))
        assert miss <= max(TOLERANCE, nearest)
    else:
        assert miss <= TOLERANCE


@pytest.mark.parametrize("rotation", ["per_block", "shared"])
@pytest.mark.parametrize("reduction", [0.01, 0.1, 0.25, 0.5, 0.7])
def test_a_whole_model_lands_on_multiples(reduction, rotation):
    plan = solve(SMOL, reduction, rotation=rotation)
    assert abs(found(plan, SMOL) - reduction) <= TOLERANCE
    assert plan.embeddings == "tied"
    assert all(size % 8 == 0 for size in (*plan.widths, plan.neurons))
    width = plan.widths[0]
    assert set(plan.widths[:-1]) == {width}
    assert plan.widths[-1] == (width if rotation == "shared" else 576)
    if width < 576:
        assert abs(1 - plan.neurons / 1536 - neuron_share(1 - width / 576)) < 0.1
    else:
        assert plan.neurons >= 1536 * (1 - NEURONS_FIRST)


def test_without_neurons_some_sites_are_a_step_wider():
    plan = solve(SMOL, mlp_sparsity=0)
    assert plan.neurons is None
    assert abs(found(plan, SMOL) - 0.25) <= TOLERANCE / 2
    *sliced, last = plan.widths
    assert last == 576
    assert sliced == sorted(sliced, reverse=True)
    assert max(sliced) - min(sliced) <= 8


def test_given_neurons_are_kept_and_the_width_carries_the_rest():
    for rotation in ("per_block", "shared"):
        plan = solve(SMOL, mlp_sparsity=0.3, rotation=rotation)
        assert plan.neurons == 1072
        assert abs(found(plan, SMOL) - 0.25) <= TOLERANCE


def test_neurons_are_rounded_less_before_widths():
    plan = solve(SMOL, rotation="shared", round_to=144)
    assert plan.widths[0] % 144 == 0
    assert abs(found(plan, SMOL) - 0.25) <= TOLERANCE
    assert list(halvings(10)) == [10, 5, 2, 1]


def test_widths_that_are_no_multiples_are_told(caplog):
    config = asked(0.2, rotation="shared", embeddings="sliced", refit=False, round_to=72)
    plan = SlicePlan.from_config(config, SMOL)
    plan.check_rest(config, SMOL)
    assert plan.widths[0] % 72
    assert f"Widths of {plan.widths[0]} are no multiples of round_to=72, of which none" in caplog.text
    caplog.clear()
    config = asked(0.25, rotation="shared", embeddings="sliced", round_to=72)  # neurons compensate for the step
    SlicePlan.from_config(config, SMOL).check_rest(config, SMOL)
    assert not caplog.text


def test_a_tied_head_stays_tied_unless_it_is_to_be_sliced():
    assert solve(SMOL).embeddings == solve(SMOL, embeddings="tied").embeddings == "tied"
    plan = solve(SMOL, embeddings="sliced")
    assert plan.embeddings == "sliced"
    assert abs(found(plan, SMOL) - 0.25) <= TOLERANCE
    assert solve(tiny_config("llama", tied=False)).embeddings == "sliced"
    with pytest.raises(ValueError, match="embeddings='narrow', but this model's head"):
        solve(tiny_config("llama", tied=False), embeddings="narrow")


def test_a_sliced_head_is_as_wide_as_the_rest():
    plan = solve(SMOL, slice_head=True)
    assert len(set(plan.widths)) == 1
    assert abs(found(plan, SMOL) - 0.25) <= TOLERANCE


def test_sites_that_must_be_equally_wide_are():
    config, uneven = tiny_config("mixtral", num_hidden_layers=5), 0
    for slice_head in (True, False):
        for reduction in (0.2, 0.3, 0.4):
            widths = solve(config, reduction, slice_head=slice_head).widths
            assert widths[1::2] == widths[2::2]
            uneven += len(set(widths[:-2])) > 1
    assert uneven
    assert solve(tiny_config("gpt2", tied=False)).widths[0] == 48
    assert solve(tiny_config("gpt2", tied=True)).widths[0] < 48


def test_no_reduction_slices_nothing():
    for rotation in ("per_block", "shared"):
        plan = solve(SMOL, 0, rotation=rotation)
        assert (set(plan.widths), plan.neurons, plan.embeddings) == ({576}, None, "tied")


def test_what_whole_dimensions_cannot_hit_is_told(caplog):
    config = tiny_config("mixtral", tied=True)
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        plan = solve(config, 0.24, rotation="shared")
        plan.check_rest(asked(0.24, rotation="shared"), config)
    share = found(plan, config)
    assert not 0 <= share - 0.24 <= TOLERANCE
    assert f"parameter_reduction=0.24: the nearest that whole dimensions allow is {share:.2%}." in caplog.text


@pytest.mark.parametrize(
    ("reduction", "kwargs", "message"),
    [
        (0.9, {}, r"parameter_reduction=0.9 is out of reach: with these settings, 0.0% to \d\d.\d% of the parameters"),
        (
            0.1,
            {"mlp_sparsity": 0.5, "rotation": "shared"},
            r"29.\d% to 78.9% of .* or change mlp_sparsity, slice_head",
        ),
        (0, {"mlp_sparsity": 0.5, "rotation": "shared"}, r"parameter_reduction=0 is out of reach"),
    ],
)
def test_reductions_out_of_reach_are_refused(reduction, kwargs, message):
    with pytest.raises(ValueError, match=message):
        solve(SMOL, reduction, **kwargs)


def test_the_ends_of_the_range_can_be_reached():
    assert abs(found(solve(SMOL, 0.785), SMOL) - 0.785) <= TOLERANCE
    assert abs(found(solve(SMOL, 0.001, rotation="shared"), SMOL) - 0.001) <= TOLERANCE


def test_inner_share_rises_to_its_limit():
    shares = [neuron_share(index / 100) for index in range(100)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (NEURONS_FIRST, MOST_NEURONS)


def test_the_configuration_and_the_random_numbers_are_untouched():
    config, state = tiny_config("llama"), torch.get_rng_state()
    before = dict(config.__dict__)
    solve(config)
    assert config.__dict__ == before
    assert torch.equal(torch.get_rng_state(), state)
