"""Text of families that go astray where it does not begin with their begin token, as Gemma does."""

import pytest
import torch
from accelerate import PartialState
from recovering import TEXTS
from tiny import build

from optimum_slicegpt import RecoveryConfig, SliceGPTConfig, load_batches
from optimum_slicegpt.commands.loading import load_test_batches
from optimum_slicegpt.data.beginnings import Beginnings
from optimum_slicegpt.data.calibration import calibration_batches
from optimum_slicegpt.data.generated import own_text
from optimum_slicegpt.data.sampling import GREEDY_TOKENS, write_blocks
from optimum_slicegpt.evaluation import check
from optimum_slicegpt.modeling.families import begin_tokens
from optimum_slicegpt.recovery.mixture import load_mixture


BEGIN = 1


@pytest.fixture(scope="module")
def model():
    return build("gemma", torch.float32, vocab_size=98, bos_token_id=BEGIN)


def rows(batches):
    return [row.tolist() for batch in batches for row in batch["input_ids"]]


def test_families():
    found = {name: begin_tokens(build(name).config) for name in ("llama", "gemma", "gemma2", "gemma3_text")}
    assert found == {"llama": [], "gemma": [1], "gemma2": [1], "gemma3_text": [1]}


def test_calibration_and_test_data(model, cli_files, tiny_tokenizer):
    path, sizes = cli_files / "train.txt", {"nsamples": 6, "seed": 0}
    config = SliceGPTConfig(dataset=path, seqlen=16, own_tokens=32, **sizes)
    found = calibration_batches(model, config, tiny_tokenizer)
    text = rows(load_batches(path, tiny_tokenizer, seqlen=15, **sizes | {"nsamples": 4}))
    own = own_text(model, tiny_tokenizer, tokens=32, length=16).tolist()
    assert sorted(rows(found)) == sorted([[BEGIN, *row] for row in text] + own)
    assert all(row[0] == BEGIN for row in own)
    test = load_test_batches(path, tiny_tokenizer, model.config, nsamples=2, seqlen=16)
    assert [row[0] for row in rows(test)] == [BEGIN] * 2 and test.ntokens == 32


def test_own_text_begins_before_its_random_token():
    model, turns = build("gemma"), ((7, 8), (9,), (10,))
    (ids,) = write_blocks(model, 0, 6, length=12, beginnings=Beginnings((BEGIN,), turns=turns))
    assert ids[::2, 0].tolist() == [BEGIN] * 3 and len(set(ids[::2, 1].tolist())) > 1
    assert ids[1::2, :3].tolist() == [[BEGIN, 7, 8]] * 3
    best = model(ids).logits.argmax(-1)[::2]
    assert torch.equal(ids[::2, 2 : GREEDY_TOKENS + 2], best[:, 1 : GREEDY_TOKENS + 1])
    again = Beginnings((BEGIN,), turns=((BEGIN, 7, 8), *turns[1:]))
    (same,) = write_blocks(model, 0, 6, length=12, beginnings=again)
    assert torch.equal(same, ids)


def test_every_window_that_is_measured(model, tiny_tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(check, "WINDOW", 8)
    monkeypatch.setattr(check, "evaluate_losses", lambda model, batches, **kwargs: seen.extend(rows(batches)))
    config = SliceGPTConfig(dataset=TEXTS, nsamples=4, seqlen=16, own_tokens=32)
    found = check.Check(model, config, tiny_tokenizer, tokens=32)
    assert found.has_texts and {len(row) for row in seen} == {8, 9}
    assert all(row[0] == BEGIN for row in seen)


@pytest.mark.parametrize(
    "template, asked",
    [
        (None, [BEGIN, 5]),
        ("{{ raise_exception('No!') }}", [BEGIN, 5]),
        ("w1 w2 {{ messages[0].content }}", [BEGIN, 2, 5]),
        ("w2 {{ messages[0].content }}", [BEGIN, 2, 5]),
    ],
)
def test_prompts(model, tiny_tokenizer, monkeypatch, template, asked):
    seen = []
    monkeypatch.setattr(model, "generate", lambda ids, **kwargs: seen.append(ids.tolist()) or ids)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    check.answer(model, tiny_tokenizer, "w5")
    assert seen == [[asked]]


def test_sequences_of_a_recovery(model, tiny_tokenizer):
    config = RecoveryConfig(dataset=TEXTS, nsamples=8, seqlen=16, held_out=2)
    found = load_mixture(config, tiny_tokenizer, model, model, PartialState(cpu=True))
    sequences = found.train + found.held_out
    assert len(sequences) == 8 and all(len(each["input_ids"]) == 16 for each in sequences)
    assert all(each["input_ids"][0] == BEGIN for each in sequences)
    assert all(torch.equal(each["labels"], each["input_ids"]) for each in sequences)
