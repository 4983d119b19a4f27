"""Computational invariance (SliceGPT, section 3): rotations alone change nothing."""

import pytest
import torch
from exactness import confine_writers, in_float32, with_float64_norms
from more_families import MORE
from tiny import TINY, WITH_NEURONS, build, calibration, paper, relative_error, tokens

from optimum_slicegpt import FAMILIES, SlicePlan
from optimum_slicegpt.data.batches import TokenBatches
from optimum_slicegpt.slicing.compress import compress


def rotate(model):
    """Rotates the stream at random at every site, and deletes nothing."""
    return model.compress(paper(sparsity=0, orientation="random", dataset=calibration()))


IN_FLOAT32 = [name for name in TINY if any(map(in_float32, build(name).modules()))]
ROUNDED = [name for name in MORE if name in TINY and name not in WITH_NEURONS]
"""Those of `MORE` whose routers or state spaces compute in float32, whatever the dtype."""


@torch.no_grad()
def error_of_rotation(model, dtype=None, norms=lambda model: model):
    model = norms(model)
    inputs = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
    inputs["attention_mask"][0, -5:] = 0  # In front, it would leave rows that see nothing: in float32, not a number.
    real = inputs["attention_mask"].bool()
    expected = model(**inputs).logits[real]
    rotated = norms(rotate(model))
    if dtype:
        rotated = rotated.to(dtype)
    return relative_error(rotated(**inputs).logits[real].double(), expected.double())


@pytest.mark.parametrize("name", TINY)
def test_rotation_keeps_logits(name):
    assert error_of_rotation(build(name)) < (1e-5 if name in MORE else 1e-6 if name in IN_FLOAT32 else 1e-10)


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_rotation_is_exact_but_for_the_stock_norm(name):
    assert error_of_rotation(build(name), norms=with_float64_norms) < (1e-6 if name in ROUNDED else 1e-10)


@pytest.mark.parametrize("name", TINY)
def test_error_falls_with_dtype(name):
    """A floor that stayed while the precision rises would be a bug in the mathematics."""
    errors = [
        error_of_rotation(build(name), dtype, norms=with_float64_norms) for dtype in (torch.bfloat16, torch.float32)
    ]
    assert 1e-4 < errors[0] < 0.3
    assert 1e-8 < errors[1] < errors[0] / 1000


@pytest.mark.parametrize("name", TINY)
def test_dense_model_is_not_changed_by_a_walk(name):
    model, config = build(name), paper(sparsity=0.3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    compress(model, [SlicePlan.from_config(config, model.config)], TokenBatches(calibration(), "tokens"), config)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in TINY if not FAMILIES[name.split("-")[0]].wide_entry])
def test_slicing_empty_dimensions_is_lossless_on_unseen_tokens(name):
    model = with_float64_norms(build(name, tie_word_embeddings=False))
    confine_writers(model, rank=16)
    expected = model(tokens(seed=7)).logits
    config = paper(sparsity=2 / 3, slice_head=True, dataset=calibration())
    sliced = with_float64_norms(model.compress(config))
    assert set(sliced.config.widths) == {16}
    assert relative_error(sliced(tokens(seed=7)).logits, expected) < (1e-5 if name in ROUNDED else 1e-8)


@torch.no_grad()
def test_random_orientation_is_the_same_function_as_pca():
    logits = [
        build("llama").compress(paper(sparsity=0.3, orientation=orientation, dataset=calibration()))(tokens())
        for orientation in ("pca", "random")
    ]
    assert relative_error(logits[0].logits, logits[1].logits) < 1e-6


@torch.no_grad()
def test_random_orientation_spreads_outliers():
    tables = {
        orientation: build("llama")
        .compress(paper(sparsity=0.3, orientation=orientation, dataset=calibration()))
        .get_input_embeddings()
        .weight
        for orientation in ("pca", "random")
    }
    spread = {orientation: table.square().sum(0) for orientation, table in tables.items()}
    assert spread["random"].max() / spread["random"].median() < spread["pca"].max() / spread["pca"].median() / 2


@torch.no_grad()
def test_calibration_dtype_changes_little_and_weights_keep_theirs():
    reference = build("llama").compress(paper(sparsity=0.2, dataset=calibration()))
    coarse = build("llama").compress(paper(sparsity=0.2, dataset=calibration(), dtype="float32"))
    assert coarse.dtype == torch.float64
    assert 1e-12 < relative_error(coarse(tokens()).logits, reference(tokens()).logits) < 1e-3
