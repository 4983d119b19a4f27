"""Text that a model writes: what its sequences begin with, and how their tokens are drawn."""

from collections import Counter

import pytest
import torch
from tiny import TINY, VOCAB, build

from optimum_slicegpt.data import sampling
from optimum_slicegpt.data.beginnings import Beginnings
from optimum_slicegpt.data.sampling import BLOCK, GREEDY_TOKENS, write_blocks


def write(model, start=0, stop=6, length=12, **kwargs):
    return torch.cat(list(write_blocks(model, start, stop, length=length, **kwargs)))


@pytest.mark.parametrize("name", TINY)
def test_every_family_goes_on_greedily_before_it_draws(name):
    model = build(name)
    ids = write(model)
    assert ids.shape == (6, 12) and ids.dtype == torch.int64 and 0 <= ids.min() and ids.max() < VOCAB
    best = model(ids).logits.argmax(-1)
    assert torch.equal(ids[:, 1 : GREEDY_TOKENS + 1], best[:, :GREEDY_TOKENS])
    assert not torch.equal(ids[:, GREEDY_TOKENS + 1 :], best[:, GREEDY_TOKENS:-1])


def test_every_other_sequence_begins_as_conversations_do():
    model, turns = build("llama"), Beginnings(turns=((7, 8, 9),))
    ids = write(model, beginnings=turns)
    assert ids[1::2, :3].tolist() == [[7, 8, 9]] * 3
    assert torch.equal(ids[::2], write(model)[::2])
    assert not torch.equal(ids[1::2, 3], model(ids).logits.argmax(-1)[1::2, 2])
    assert write(model, length=2, beginnings=turns)[1::2].tolist() == [[7, 8]] * 3


def test_openings_are_taken_one_after_the_other():
    model, openings = build("llama"), ((7, 8), (9,), (10, 11, 12))
    ids = write(model, beginnings=Beginnings(openings=openings))
    for number, row in enumerate(ids.tolist()):
        opening = openings[number % 3]
        assert tuple(row[: len(opening)]) == opening
    best = model(ids).logits.argmax(-1)
    assert not torch.equal(ids[:, 3:7], best[:, 2:6])
    assert ids[0, 2:].tolist() != ids[3, 2:].tolist()
    talks = write(model, beginnings=Beginnings((5,), openings, ((20, 21),)))
    assert talks[1::2, :3].tolist() == [[5, 20, 21]] * 3
    assert [row[: 1 + len(opening)].tolist() for row, opening in zip(talks[::2], openings, strict=True)] == [
        [5, *opening] for opening in openings
    ]
    assert write(model, length=2, beginnings=Beginnings(openings=openings))[2].tolist() == [10, 11]


def test_speakers_take_turns():
    """A speaker's end is followed by all that stands between the turns; the other's end is a token like any other."""
    turns = ((7, 8), (10, 11, 12), (20, 21))
    switches, ids = 0, write(build("llama"), stop=40, length=300, beginnings=Beginnings(turns=turns))
    for number, row in enumerate(ids.tolist()):
        speaker, position = (0, 2) if number % 2 else (1, 1)
        while position < len(row):
            end = [*turns[1 + speaker]]
            if row[position] == end[0]:
                assert row[position : position + len(end)] == end[: len(row) - position]
                speaker, position, switches = 1 - speaker, position + len(end), switches + 1
            else:
                position += 1
    assert switches > 80


def test_a_sequence_depends_on_its_number_and_the_seed():
    model = build("llama")
    several = write(model, stop=BLOCK + 3, length=8)
    for start, stop in ((0, 3), (2, 5), (BLOCK - 1, BLOCK + 2)):
        assert torch.equal(write(model, start, stop, length=8), several[start:stop])
    assert not torch.equal(several[:3], several[BLOCK:])
    assert not torch.equal(write(model, length=8, seed=1), several[:6])


def test_blocks_are_of_so_many_sequences():
    model = build("llama")
    assert [len(ids) for ids in write_blocks(model, 5, 2 * BLOCK + 1, length=2)] == [BLOCK - 5, BLOCK, 1]


def test_of_a_large_model_fewer_sequences_are_written_at_a_time(monkeypatch):
    model = build("llama")
    at_once = write(model)
    monkeypatch.setattr(sampling, "CACHE_BYTES", 4 * sampling.text_bytes(model, 12))
    blocks = list(write_blocks(model, 0, 6, length=12))
    assert [len(ids) for ids in blocks] == [4, 2] and torch.equal(torch.cat(blocks), at_once)


def test_the_model_and_the_global_generator_are_left_alone():
    model = build("llama", torch.float32).train()
    model.generation_config.update(temperature=0.01, top_k=1, repetition_penalty=1.5)
    weights, state = {name: each.data_ptr() for name, each in model.named_parameters()}, torch.random.get_rng_state()
    assert torch.equal(write(model), write(model.eval()))
    assert {name: each.data_ptr() for name, each in model.named_parameters()} == weights
    assert model.dtype == torch.float32 and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fastest", [torch.float32, torch.bfloat16])
def test_text_is_written_in_the_fastest_dtype(stored, fastest, hardware):
    hardware(fastest)
    seen, model = set(), build("llama", stored)
    model.register_forward_pre_hook(lambda module, inputs: seen.add(module.dtype))
    write(model, length=2)
    assert seen == {fastest} and model.dtype == stored


def test_very_short_sequences():
    for length in (1, 2, 5):
        assert write(build("llama"), stop=2, length=length).shape == (2, length)


def drawn(logits, count=20_000):
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0))
    counts = Counter(sampling._draw(torch.tensor([logits]).expand(count, -1), noise).tolist())
    return [counts[token] / count for token in range(len(logits))]


def test_tokens_are_drawn_as_probable_as_they_are(monkeypatch):
    probabilities = torch.tensor([0.1, 0.6, 0.0, 0.3])
    assert drawn(probabilities.log().tolist()) == pytest.approx([0.1, 0.6, 0.0, 0.3], abs=0.02)
    monkeypatch.setitem(sampling.SAMPLING, "temperature", 0.5)
    squares = probabilities.square() / probabilities.square().sum()
    assert drawn(probabilities.log().tolist()) == pytest.approx(squares.tolist(), abs=0.02)


def test_improbable_tokens_can_be_left_out(monkeypatch):
    monkeypatch.setitem(sampling.SAMPLING, "top_p", 0.9)
    found = drawn(torch.tensor([0.1, 0.6, 0.0, 0.3]).log().tolist())
    assert found == pytest.approx([0.0, 2 / 3, 0.0, 1 / 3], abs=0.02)
