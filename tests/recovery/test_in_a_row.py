"""Slicing and recovery in a row, by one call and by one command."""

import pytest
import torch
from recovering import quick_config
from tiny import build, calibration

from optimum_slicegpt import SliceGPTConfig, recover
from optimum_slicegpt.recovery.training import seeded


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
    """Training takes place in inference mode, too, though not by it."""
    slicing = SliceGPTConfig(sparsity=0.25, dataset=calibration())
    model = dense()
    with torch.inference_mode():
        model.compress(slicing, tiny_tokenizer, recover=quick_config())
    assert model.config.slicegpt["recovery"]["teacher"] is None


def test_what_recovery_refuses_is_refused_before_slicing():
    model = build("llama", torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="full=True with weights in torch.bfloat16"):
        model.compress(SliceGPTConfig(sparsity=0.3, dataset=calibration()), recover=quick_config(full=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_random_numbers_of_all_gpus_are_as_they_were(monkeypatch):
    """Seeding reaches all of them, whichever trains."""
    states = {0: torch.tensor([5]), 1: torch.tensor([7])}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: states.update(dict.fromkeys(states, seed)))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    with seeded(3):
        assert states == {0: 3, 1: 3}
    assert states == {0: torch.tensor([5]), 1: torch.tensor([7])}
