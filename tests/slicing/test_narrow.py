"""A matrix that embedding and head share, as narrow as the stream."""

import pytest
import torch
from configurations import tiny_config
from exactness import confine_writers, with_float64_norms
from more_families import MORE
from tiny import ENDS, HIDDEN, build, calibration, relative_error, tokens
from transformers import AutoConfig

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.planning.settings import fits_stock


RANK = 16
"""Dimensions that hold all of the stream, a multiple of the number of heads."""
SLIDING = {"qwen2": {"use_sliding_window": False}}
"""Without which a narrower model has a stock class."""


def tied_config(name):
    return tiny_config(name, True, **SLIDING.get(name, {}))


TIED = [
    name
    for name, tied in ENDS
    if tied and "tie_word_embeddings" in AutoConfig.for_model(name.split("-")[0]).to_dict()
    if not family_of(tiny_config(name)).wide_entry
]
LAYER_NORM = [name for name in TIED if family_of(tiny_config(name)).layer_norm]
RMS_NORM = [name for name in TIED if name not in LAYER_NORM]
CASES = [("sliced", name) for name in RMS_NORM]
CASES += [("stock", name) for name in RMS_NORM if fits_stock(SliceGPTConfig(), tied_config(name))(RANK)]


def with_gains_of_both_signs(model):
    """Draws the gains of all norms on the stream around zero."""
    decoder, generator = Decoder(model), torch.Generator().manual_seed(3)
    norms = [norm for block in decoder.blocks() for _, norm, _ in block.norms()]
    for norm in [decoder.final_norm, *norms]:
        if hasattr(norm, "weight"):
            gains = torch.randn(norm.weight.shape, generator=generator, dtype=torch.float64)
            norm.weight.copy_(gains - decoder.family.gain_offset)
    return model


def shares_one_matrix(model):
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return head is table and model.config.tie_word_embeddings


@torch.no_grad()
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_slicing_empty_dimensions_is_lossless_on_unseen_tokens(architecture, name, refit):
    dense = with_gains_of_both_signs(build(name, tie_word_embeddings=True, **SLIDING.get(name, {})))
    model = with_float64_norms(dense)
    confine_writers(model, RANK)
    expected = model(tokens(seed=7)).logits
    settings = {"architecture": architecture, "embeddings": "narrow", "refit": refit}
    sites = Decoder(model).num_sites
    model.compress(SliceGPTConfig(widths=[RANK] * sites, dataset=calibration(8, batch=4), **settings))
    narrow = with_float64_norms(model)
    assert shares_one_matrix(narrow) and narrow.get_input_embeddings().weight.shape[1] == RANK
    assert type(narrow).__name__.startswith("Sliced") == (architecture == "sliced")
    gains = Decoder(narrow).final_norm.weight + (architecture == "stock") * Decoder(narrow).family.gain_offset
    assert gains.min() < 0 < gains.max()
    bound = 1e-4 if refit else 1e-6 if name in MORE else 1e-8  # Routers and state spaces compute in float32.
    assert relative_error(narrow(tokens(seed=7)).logits, expected) < bound


@torch.no_grad()
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("name", LAYER_NORM)
def test_deleting_nothing_is_lossless_with_layer_norms(name, refit):
    """The mean, which they subtract, stays in the matrix that the head shares."""
    model = with_float64_norms(with_gains_of_both_signs(build(name, tie_word_embeddings=True)))
    expected, architecture = model(tokens(seed=7)).logits, type(model)
    settings = {"architecture": "stock", "embeddings": "narrow", "refit": refit}
    model.compress(SliceGPTConfig(sparsity=0, dataset=calibration(8, batch=4), **settings))
    assert type(model) is architecture and shares_one_matrix(model) and model.config.hidden_size == HIDDEN
    bound = 1e-4 if refit else 1e-8 if name in MORE else 1e-10  # Rotations of GPT-J's kind come in float32.
    assert relative_error(with_float64_norms(model)(tokens(seed=7)).logits, expected) < bound
