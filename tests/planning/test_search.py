"""`max_loss`: which sizes are tried, and how few of them are measured."""

import math

import pytest
from configurations import SMOL, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.planning.search import find_smallest
from optimum_slicegpt.planning.widths import LEAST_REST, likely_plan, sizes_to_try


SHARES = [0.0125 * (step + 1) for step in range(50)]


def search(loss_at, limit):
    """Returns the index that is found, and those that were measured."""
    measured = []

    def measure(index):
        measured.append(index)
        return loss_at(SHARES[index])

    return find_smallest(SHARES, limit, measure), measured


@settings(max_examples=100, deadline=None)
@given(scale=st.floats(0.1, 100), exponent=st.floats(1.0, 4.0), limit=st.floats(0.01, 2.0), breaks=st.floats(0.1, 0.9))
def test_the_smallest_size_and_the_next_one_are_measured(scale, exponent, limit, breaks):
    def loss_at(share):
        return scale * share**exponent + (math.inf if share > breaks else 0)

    found, measured = search(loss_at, limit)
    assert found == max((index for index, share in enumerate(SHARES) if loss_at(share) <= limit), default=-1)
    assert len(measured) == len(set(measured))
    assert found in (-1, *measured) and found + 1 in (*measured, len(SHARES))


@pytest.mark.parametrize("limit", [0.05, 0.1, math.log(1.1), 0.3])
@pytest.mark.parametrize("scale, exponent", [(2.5, 1.0), (3.2, 0.95), (1.7, 0.95), (2.6, 1.1)])
def test_three_sizes_are_enough_for_a_loss_like_that_of_smollm2(scale, exponent, limit):
    assert len(search(lambda share: scale * share**exponent, limit)[1]) <= 3


def test_losses_that_are_only_noise():
    found, measured = search(lambda share: -0.002 if share < 0.3 else 0.5, 0.1)
    assert SHARES[found] < 0.3 <= SHARES[found + 1] and len(measured) < 14


def test_sizes_differ_and_leave_a_model():
    sizes = sizes_to_try(SliceGPTConfig(max_loss=0.1), SMOL)
    plans = [plan for _, plan in sizes]
    assert len(set(plans)) == len(plans) > 30
    assert all(config.max_loss is None and SlicePlan.from_config(config, SMOL) == plan for config, plan in sizes[::9])
    assert plans[0].neurons == 1472 and plans[-1].widths[0] < 288 + 32


def test_settings_that_rule_small_cuts_out_leave_the_others():
    sizes = sizes_to_try(SliceGPTConfig(max_loss=0.1, mlp_sparsity=0.5), tiny_config("llama"))
    assert sizes[0][0].parameter_reduction > 0.05 and {plan.neurons for _, plan in sizes} == {20}


def test_neurons_that_no_size_varies_end_no_search():
    """Few of them are left whatever the width is."""
    sizes = sizes_to_try(SliceGPTConfig(max_loss=0.1, mlp_sparsity=0.8, round_neurons_to=8), tiny_config("llama"))
    assert len(sizes) > 3 and {plan.neurons for _, plan in sizes} == {8}
    assert all(plan.widths[0] >= LEAST_REST * plan.hidden_size for _, plan in sizes)


def test_what_cannot_be_sliced_is_refused_in_its_own_words():
    with pytest.raises(ValueError, match="schedule='energy', but a mixtral model keeps all its neurons"):
        sizes_to_try(SliceGPTConfig(max_loss=0.1, schedule="energy"), tiny_config("mixtral"))


def test_a_plan_needs_a_size():
    config, model_config = SliceGPTConfig(max_loss=0.1), tiny_config("llama")
    with pytest.raises(ValueError, match="max_loss=0.1: the size is found by slicing and measuring, .* give a size"):
        SlicePlan.from_config(config, model_config)
    sizes = [likely_plan(SliceGPTConfig(max_loss=limit), model_config).neurons for limit in (1e-6, 0.1, 0.3)]
    assert 40 > sizes[0] > sizes[1] > sizes[2]
    assert likely_plan(SliceGPTConfig(), SMOL) == SlicePlan.from_config(SliceGPTConfig(), SMOL)
