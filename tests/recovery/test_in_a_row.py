"""Slicing and recovery in a row, by one call and by one command."""

import pytest
import torch
from recovering import quick_config
from tiny import build, calibration

from optimum_slicegpt import SliceGPTConfig, recover


def dense(name="llama"):
    return build(name, torch.float32, vocab_size=98, tie_word_embeddings=True)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_one_call_is_slicing_and_then_recovery(name, full, tiny_tokenizer):
    slicing = SliceGPTConfig(sparsity=0.25, dataset=calibration(), embeddings="tied")
    config = quick_config(distill=True, full=full)
    expected = recover(dense(name).compress(slicing), tiny_tokenizer, config, teacher=dense(name))
    model = dense(name)
    assert model.compress(slicing, tiny_tokenizer, recover=config) is model
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_specialist_needs_no_teacher(tiny_tokenizer):
    slicing = SliceGPTConfig(sparsity=0.25, dataset=calibration())
    model = dense().compress(slicing, tiny_tokenizer, recover=quick_config())
    assert model.config.slicegpt["recovery"]["teacher"] is None
