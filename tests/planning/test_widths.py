import logging

import pytest
from tiny import ALL, ENDS, HIDDEN, TINY, build, calibration, differing_widths, paper
from transformers import AutoConfig

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.configuration_sliced import sliced_config_class
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.slicing.skeleton import build_sliced


def plan(name="llama", **kwargs):
    """Makes a plan, of the paper's method unless `kwargs` say otherwise."""
    defaults = {"rotation": "per_block", "refit": "mlp_sparsity" in kwargs, "round_to": 8, "round_neurons_to": 8}
    config = SliceGPTConfig(**defaults | kwargs)
    return SlicePlan.from_config(config, build(name).config)


@pytest.mark.parametrize(("name", "tied"), ENDS)
def test_parameters_are_predicted_exactly(name, tied):
    model = build(name, tie_word_embeddings=tied)
    for choice in ({"sparsity": 0.3}, {"sparsity": 0}, {"widths": differing_widths(model.config)}):
        config = paper(**choice, dataset=calibration())
        predicted = SlicePlan.from_config(config, model.config).num_parameters(model)
        assert build(name, tie_word_embeddings=tied).compress(config).num_parameters() == predicted


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize(("name", "tied"), ENDS)
def test_architectures_are_predicted_exactly(name, tied, shortcuts):
    model = build(name, tie_word_embeddings=tied)
    widths = differing_widths(model.config) if shortcuts else [28] * len(differing_widths(model.config))
    family = family_of(model.config)
    for stays_tied in {tied, False} if family.wide_entry is None else {True}:
        for neurons in (None,) if family.keeps_neurons else (None, 17):
            expected = SlicePlan(HIDDEN, tuple(widths), "tied" if stays_tied else "sliced", shortcuts, neurons)
            assert build_sliced(model, expected).num_parameters() == expected.num_parameters(model)


def test_widths_are_rounded_down_and_the_head_stays_full():
    assert plan(sparsity=0.25).widths == (32, 32, 32, 32, 48)
    assert plan(sparsity=0.25, round_to=1).widths == (36, 36, 36, 36, 48)
    assert plan(sparsity=0.25, round_to=5, slice_head=True).widths == (35,) * 5
    assert plan("phi", sparsity=0.5).widths == (24, 24, 48)


def test_without_sparsity_the_width_stays():
    assert plan(sparsity=0, mlp_sparsity=0.5, rotation="shared", round_to=36).widths == (48,) * 5


def test_shared_axes_give_all_sites_one_width():
    for slice_head in (True, False):
        shared = plan(sparsity=0.25, rotation="shared", slice_head=slice_head)
        assert (shared.widths, shared.shortcuts) == ((32,) * 5, False)
    assert plan("gpt2", sparsity=0, rotation="shared").widths == (48,) * 5
    assert plan("mixtral", sparsity=0.25, rotation="shared").widths == (32,) * 5
    assert not plan(widths=[40] * 5, rotation="shared").shortcuts


def test_neurons_are_rounded_down():
    assert plan(sparsity=0.25, mlp_sparsity=0.5).neurons == 16
    assert plan(sparsity=0.25, mlp_sparsity=0.5, round_neurons_to=1).neurons == 20
    assert plan(sparsity=0.25, mlp_sparsity=0.9, round_neurons_to=1).neurons == 4  # which floating point would make 3
    assert plan(widths=[40] * 5, mlp_sparsity=0.1).neurons == 32
    assert plan("opt", mlp_sparsity=0.5).neurons == plan("gpt2", mlp_sparsity=0.5).neurons == 16
    assert (
        SlicePlan.from_config(SliceGPTConfig(sparsity=0, mlp_sparsity=0.5), build("gpt2", n_inner=None).config).neurons
        == 96
    )


def test_neurons_stay_unless_asked_for():
    assert plan(sparsity=0.25).neurons is None
    assert plan(sparsity=0.25, mlp_sparsity=0).neurons is None
    assert plan("mixtral", mlp_sparsity=0).neurons is None


def test_mlp_sparsity_that_leaves_nothing_is_refused():
    with pytest.raises(
        ValueError, match="mlp_sparsity=0.9 leaves no neuron of 40 .* round_neurons_to=8; lower either"
    ):
        plan(mlp_sparsity=0.9)


def test_mlp_sparsity_of_experts_is_refused():
    with pytest.raises(ValueError, match="mlp_sparsity=0.3, but a mixtral model keeps all .* leave mlp_sparsity"):
        plan("mixtral", mlp_sparsity=0.3)


@pytest.mark.parametrize("settings", [{"sparsity": 0.3}, {"parameter_reduction": 0.1}, {"widths": [20] * 5}])
def test_a_table_that_a_norm_follows_keeps_its_width(settings):
    dense = build("bloom")
    found = SlicePlan.from_config(SliceGPTConfig(**settings), dense.config)
    sliced = build_sliced(dense, found)
    assert sliced.num_parameters() == found.num_parameters(dense) < dense.num_parameters()
    assert sliced.get_input_embeddings().weight.shape == dense.get_input_embeddings().weight.shape
    with pytest.raises(
        ValueError, match="embeddings='sliced', but this model's table keeps its width: a norm follows"
    ):
        SlicePlan.from_config(SliceGPTConfig(embeddings="sliced", **settings), dense.config)


def test_sparsity_zero_keeps_a_size_that_is_no_multiple():
    assert set(plan(sparsity=0, round_to=32).widths) == {HIDDEN}


def test_sparsity_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="sparsity=0.9 leaves no dimension of 48 .* round_to=8"):
        plan(sparsity=0.9)


def test_random_axes_of_a_family_that_keeps_its_width_are_refused():
    config = SliceGPTConfig(architecture="stock", orientation="random", sparsity=0, mlp_sparsity=0.4)
    with pytest.raises(ValueError, match="a gpt2 model keeps its width, and orientation='random' turns the axes"):
        SlicePlan.from_config(config, build("gpt2", tie_word_embeddings=False).config)


def test_widths_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="widths has 3 entries; this model has 5 sites"):
        plan(widths=[8, 8, 8])


def test_widths_above_the_hidden_size_are_refused():
    with pytest.raises(ValueError, match="widths holds 49, more than the hidden size, 48"):
        plan(widths=[8, 8, 49, 8, 8])


# Families that need sites to be equally wide


def test_head_at_full_width_keeps_what_must_be_as_wide(caplog):
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        assert plan("mixtral", sparsity=0.25).widths == (32, 32, 32, 48, 48)
    assert "Site 3 is not sliced: it must be as wide as site 4, which the head reads, because experts" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        assert plan("gpt2", sparsity=0.25).widths == (48, 32, 32, 32, 48)
    assert "Site 0 is not sliced: it must be as wide as site 4, which the head reads, because the mod" in caplog.text
    assert "slice_head=True slices both" in caplog.text


def test_where_nothing_is_sliced_there_is_no_exception(caplog):
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        assert plan("mixtral", sparsity=0).widths == plan("gpt2", parameter_reduction=0).widths == (48,) * 5
    assert not caplog.text


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_sliced_head_needs_no_exception(name, caplog):
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        assert plan(name, sparsity=0.25, slice_head=True).widths == (32,) * 5
    assert not caplog.text


UNEQUAL = [
    ("mixtral", [40, 36, 32, 28, 28], "holds 36 at site 1 and 32 at site 2; they must be equal, because experts"),
    ("qwen3_moe", [40, 36, 36, 32, 28], "holds 32 at site 3 and 28 at site 4; they must be equal, because experts"),
    ("gpt2", [40, 36, 32, 28, 24], "holds 40 at site 0 and 24 at site 4; they must be equal, because the model gives"),
]


@pytest.mark.parametrize(("name", "widths", "message"), UNEQUAL)
def test_widths_that_the_family_cannot_compute_are_refused(name, widths, message):
    with pytest.raises(ValueError, match=message):
        plan(name, widths=widths)


@pytest.mark.parametrize(("name", "widths", "message"), UNEQUAL)
def test_configurations_that_the_family_cannot_compute_are_refused(name, widths, message):
    sizes = TINY[name] | {family_of(build(name).config).size_keys[0]: widths[-1]}
    with pytest.raises(Exception, match=message):
        sliced_config_class(name)(**sizes, original_hidden_size=HIDDEN, widths=widths)


def test_configurations_without_shortcuts_have_one_width():
    with pytest.raises(Exception, match="without shortcuts all sites must be equally wide"):
        sliced_config_class("llama")(
            **TINY["llama"], original_hidden_size=HIDDEN, widths=[48] * 4 + [40], shortcuts=False
        )


def test_one_width_is_that_of_all_sites():
    model_config = build("llama").config
    one, all_sites = (SlicePlan.from_config(SliceGPTConfig(widths=widths), model_config) for widths in (32, [32] * 5))
    assert one == all_sites


def test_a_sliced_model_is_refused_by_what_it_is():
    sliced = build("llama").compress(SliceGPTConfig(sparsity=0.25, dataset=calibration()))
    sliced.config.slicegpt["base_model"] = "me/base"
    with pytest.raises(ValueError, match="This model is already sliced; slice the dense model, me/base, with the"):
        SlicePlan.from_config(SliceGPTConfig(parameter_reduction=0.5), sliced.config)


@pytest.mark.parametrize(
    "settings, left",
    [({"sparsity": 0.8}, "8 of 48 dimensions"), ({"sparsity": 0, "mlp_sparsity": 0.9}, "4 of 40 neurons")],
)
def test_little_that_was_asked_for_is_left_with_a_warning(settings, left, caplog):
    config, model_config = SliceGPTConfig(round_to=4, round_neurons_to=4, **settings), build("llama").config
    SlicePlan.from_config(config, model_config).check_rest(config, model_config)
    assert f"The settings leave {left}, less than a quarter, which destroys most models." in caplog.text


def test_a_size_is_found_where_no_width_suits_all_tools():
    model_config = AutoConfig.for_model("jais2", **ALL["jais2"])
    found = SlicePlan.from_config(SliceGPTConfig(orientation="random"), model_config)
    assert found.stock_size == 44
