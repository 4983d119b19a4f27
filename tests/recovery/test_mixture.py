"""What a recovery trains on: text of the dense model, other data, or both."""

import pytest
import torch
from accelerate import PartialState
from recovering import TEXTS, fresh_model, turns
from tiny import build

from optimum_slicegpt import RecoveryConfig
from optimum_slicegpt.data.generated import own_text
from optimum_slicegpt.recovery.mixture import load_mixture
from optimum_slicegpt.recovery.packing import load_sequences


SIZES = {"nsamples": 12, "seqlen": 8, "held_out": 0.25}


@pytest.fixture(scope="module")
def models():
    return fresh_model(), build("llama", torch.float32, vocab_size=98)


@pytest.fixture
def mixture(models, tiny_tokenizer):
    """Returns a function that loads the data of settings."""
    student, teacher = models

    def load(**kwargs):
        config = RecoveryConfig(**{"dataset": TEXTS} | SIZES | kwargs)
        return load_mixture(
            config, tiny_tokenizer, student, teacher if config.distill else None, PartialState(cpu=True)
        )

    return load


def rows(sequences):
    return [sequence["input_ids"].tolist() for sequence in sequences]


def test_half_of_it_is_text_of_the_dense_model(mixture, models, tiny_tokenizer):
    found = mixture()
    assert (found.kinds, found.source) == (("texts", "self"), "texts, self")
    own = own_text(models[1], tiny_tokenizer, tokens=48, length=8).tolist()
    data = load_sequences(TEXTS, tiny_tokenizer, **SIZES | {"nsamples": 6})
    assert rows(found.train) == rows(data.train) + own[:4]
    assert rows(found.held_out) == rows(data.held_out) + own[4:]
    assert [sequence["kind"].item() for sequence in found.held_out] == [0, 0, 1, 1]
    assert all(torch.equal(sequence["labels"], sequence["input_ids"]) for sequence in found.train)


@pytest.mark.parametrize(
    "kwargs, kinds, train, held_out",
    [
        ({"own_tokens": 0}, ("texts",), 9, 3),
        ({"own_tokens": 33}, ("texts", "self"), 9, 3),
        ({"own_tokens": 10**6}, ("self",), 9, 3),
        ({"dataset": "self"}, ("self",), 9, 3),
        ({"distill": False}, ("texts",), 9, 3),
        ({"held_out": 4}, ("texts", "self"), 8, 4),
        ({"held_out": 1}, ("texts", "self"), 10, 2),
        ({"own_tokens": 0, "held_out": 1}, ("texts",), 11, 1),
    ],
)
def test_shares(kwargs, kinds, train, held_out, mixture):
    found = mixture(**kwargs)
    assert (found.kinds, len(found.train), len(found.held_out)) == (kinds, train, held_out)


def test_own_tokens_are_about_as_many_as_asked_for(mixture):
    found = mixture(own_tokens=33, held_out=2)
    own = [sequence for sequence in found.held_out if sequence["kind"] == 1]
    assert len(own) == 1 and rows(own) == rows(mixture(dataset="self", nsamples=4).held_out)


@pytest.mark.parametrize("distill", [True, False])
def test_all_positions_count_where_the_dense_model_is_learned_from(distill, mixture, tiny_tokenizer, monkeypatch):
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    found = mixture(dataset=[{"messages": turns("w4 w5", "w6 w7")}] * 20, own_tokens=0, distill=distill)
    assert all((sequence["labels"] != -100).all() for sequence in found.train) == distill


def test_a_tokenizer_by_its_name_opens_own_text_as_the_object_does(models, tiny_tokenizer, tmp_path, monkeypatch):
    template = "{% for m in messages %}w9 w8 {{ m['content'] }} {% endfor %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    tiny_tokenizer.save_pretrained(tmp_path)
    config, processes = RecoveryConfig(**{"dataset": "self"} | SIZES), PartialState(cpu=True)
    found = [load_mixture(config, each, *models, processes) for each in (str(tmp_path), tiny_tokenizer)]
    assert rows(found[0].train) == rows(found[1].train)
    assert all(row[:2] == [9, 8] for row in rows(found[0].train)[1::2])


def test_too_little_own_text(mixture):
    with pytest.raises(ValueError, match="Dataset 'self' makes 2 sequences of 8 tokens, and held_out=2 of them"):
        mixture(dataset="self", nsamples=2, held_out=2)
