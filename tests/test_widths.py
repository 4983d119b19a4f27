import pytest
from tiny import HIDDEN, TINY, build, calibration

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.families import family_of


def plan(name="llama", **kwargs):
    return SlicePlan.from_config(SliceGPTConfig(**kwargs), build(name).config)


def falling_widths(config):
    return [HIDDEN - 8 - 3 * site for site in range(family_of(config).num_sites(config))]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_parameters_are_predicted_exactly(name, tied):
    model = build(name, tie_word_embeddings=tied)
    for choice in ({"sparsity": 0.3}, {"sparsity": 0}, {"widths": falling_widths(model.config)}):
        config = SliceGPTConfig(**choice, dataset=calibration())
        predicted = SlicePlan.from_config(config, model.config).num_parameters(model)
        assert build(name, tie_word_embeddings=tied).compress(config).num_parameters() == predicted


def test_widths_are_rounded_down_and_the_head_stays_full():
    assert plan(sparsity=0.25).widths == (32, 32, 32, 32, 48)
    assert plan(sparsity=0.25, round_to=1).widths == (36, 36, 36, 36, 48)
    assert plan(sparsity=0.25, round_to=5, slice_head=True).widths == (35,) * 5
    assert plan("phi", sparsity=0.5).widths == (24, 24, 48)


def test_sparsity_zero_keeps_a_size_that_is_no_multiple():
    assert set(plan(sparsity=0, round_to=32).widths) == {HIDDEN}


def test_sparsity_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="sparsity=0.9 leaves no dimension of 48 .* round_to=8"):
        plan(sparsity=0.9)


def test_widths_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="widths has 3 entries; this model has 5 sites"):
        plan(widths=[8, 8, 8])


def test_widths_above_the_hidden_size_are_refused():
    with pytest.raises(ValueError, match="widths holds 49, more than the hidden size, 48"):
        plan(widths=[8, 8, 49, 8, 8])
