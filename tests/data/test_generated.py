"""Calibration text that the model writes itself."""

import torch
from tiny import VOCAB, build

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.data.generated import generate_batches


def sample(model, **kwargs):
    return generate_batches(model, **{"nsamples": 35, "seqlen": 12, "batch_size": 8} | kwargs)


def test_sequences_are_as_many_and_as_long_as_asked_for():
    found = sample(build("llama", torch.float32))
    assert [tuple(batch["input_ids"].shape) for batch in found] == [(8, 12)] * 4 + [(3, 12)]
    assert found.source == "self" and found.ntokens == 35 * 12
    ids = torch.cat([batch["input_ids"] for batch in found])
    assert ids.min() >= 0 and ids.max() < VOCAB


def test_the_model_goes_on_greedily_before_it_draws():
    model = build("llama", torch.float32)
    ids = sample(model, nsamples=4).batches[0]["input_ids"]
    best = model(ids).logits.argmax(-1)
    assert torch.equal(ids[:, 1:5], best[:, :4])
    assert not torch.equal(ids[:, 5:], best[:, 4:-1])


def test_a_seed_says_it_all_and_the_global_generator_is_left_alone():
    model = build("llama", torch.float32)
    state = torch.random.get_rng_state()
    first, again, other = (sample(model, nsamples=3, seed=seed).batches[0]["input_ids"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_very_short_sequences():
    for seqlen in (1, 2, 5):
        assert sample(build("llama", torch.float32), nsamples=2, seqlen=seqlen).ntokens == 2 * seqlen


def test_slicing_needs_no_text_and_no_tokenizer():
    config = SliceGPTConfig(sparsity=1 / 3, dataset="self", nsamples=6, seqlen=24)
    model = build("llama", torch.float32).compress(config)
    assert model.config.slicegpt["calibration"] == {"source": "self", "tokens": 6 * 24}


def test_the_models_own_generation_settings_do_not_count():
    model = build("llama", torch.float32)
    written = sample(model).batches[0]["input_ids"]
    model.generation_config.update(temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=1.5, num_beams=2)
    model.generation_config.update(no_repeat_ngram_size=2, return_dict_in_generate=True, max_time=0.0)
    settings = model.generation_config
    assert torch.equal(sample(model).batches[0]["input_ids"], written)
    assert model.generation_config is settings
