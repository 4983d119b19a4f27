"""What a model of images and text adds to its stream behind layers is in the dense stream and in the sliced one."""

import pytest
import torch
from image_models import IMAGE_MODELS, build_whole, seen_and_read
from more_families import HEADLESS
from tiny import ALL, build, calibration, relative_error
from transformers import AutoModelForImageTextToText

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.data.calibration import calibration_batches
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import deep_writers
from optimum_slicegpt.modeling.towers import text_tower
from optimum_slicegpt.modeling.weights import Writer
from optimum_slicegpt.slicing.methods import refine
from optimum_slicegpt.slicing.run import Computation
from optimum_slicegpt.storage.base import InMemory


def sites_joined(model, dataset):
    """Returns, for each batch, the sites at which the model itself adds to its stream."""
    config = SliceGPTConfig(dataset=dataset)
    run = Computation(model, calibration_batches(model, config), config, InMemory(model, config))
    run.start()
    return [sorted(batch.joining) for batch in run.batches]


@torch.no_grad()
def test_nothing_joins_the_stream_unless_the_model_adds_it():
    text = calibration(batches=1)
    for name in ALL.keys() - HEADLESS.keys():
        assert sites_joined(build(name), text) == [[]]
    for name in IMAGE_MODELS:
        whole = build_whole(name)
        sites = [*deep_writers(whole.config, whole.base_model)]
        assert sites_joined(text_tower(whole), [seen_and_read(name), *text]) == [sites, []]
        assert sites == ([2, 4] if name in ("qwen3_vl", "qwen3_vl_moe") else [])


def build_in_subspaces(name):
    """Builds a model whose stream keeps to 24 of 48 dimensions, and is joined by features along 8 others."""
    whole = build_whole(name)
    tower, base = Decoder(text_tower(whole)), whole.base_model
    writers = [*tower.tables, Writer(base, "visual.merger.linear_fc2")]
    writers += [writer for block in tower.blocks() for writer in block.writers().values()]
    joining = [Writer(base, key) for key in deep_writers(whole.config, base).values()]
    for first, last, some in ((0, 24, writers), (24, 32, joining)):
        for values in (values for writer in some for values in (writer.weight, writer.bias) if values is not None):
            values[..., :first] = values[..., last:] = 0
    return whole


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen3_vl", {}),
        ("qwen3_vl", {"rotation": "per_block", "metric": "fisher"}),
        ("qwen3_vl_moe", {"rotation": "per_block", "refit": False}),
    ],
)
def test_features_that_join_the_stream_are_kept_and_not_written_by_blocks(name, settings, monkeypatch, tmp_path):
    """Nothing is lost with the dimensions that the stream never uses, if it is known for which ones that is so."""
    monkeypatch.setattr(refine, "STEP_TOKENS", 16)
    batches = [seen_and_read(name, seed=seed, length=10) for seed in (1, 2, 3, 4)]
    whole, (inputs, *dataset) = build_in_subspaces(name), batches
    expected = whole(**inputs).logits
    whole.compress(SliceGPTConfig(sparsity=1 / 3, slice_head=True, dataset=dataset, **settings))
    assert {*whole.config.text_config.widths} == {32}
    assert relative_error(whole(**inputs).logits, expected) < 1e-6
    whole.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, experts_implementation="eager")
    assert relative_error(loaded(**inputs).logits, expected) < 1e-6
