"""Texts and tokens to batches."""

import logging
import random
from pathlib import Path

import pytest
import torch

from optimum_slicegpt.data import batches as data_batches
from optimum_slicegpt.data.batches import TokenBatches, load_batches


def words(n, start=0):
    return " ".join(f"w{i % 96}" for i in range(start, start + n))


def ids(batches):
    return torch.cat([batch["input_ids"] for batch in batches])


# Text to chunks


def test_chunks_follow_the_protocol(tiny_tokenizer, caplog):
    found = load_batches([words(23)], tiny_tokenizer, nsamples=5, seqlen=4, batch_size=2, seed=None)
    assert [tuple(batch["input_ids"].shape) for batch in found] == [(2, 4), (2, 4), (1, 4)]
    assert ids(found).dtype == torch.int64
    assert ids(found).flatten().tolist() == list(range(20))  # no special token, the tail dropped
    assert (found.source, found.ntokens, len(found.batches)) == ("texts", 20, 3)
    assert not caplog.records


def test_documents_are_joined_by_a_blank_line():
    seen = []

    def tokenizer(text, **kwargs):
        seen.append((text, kwargs))
        return {"input_ids": [1, 2]}

    load_batches(["w1", "", "w2"], tokenizer, nsamples=1, seqlen=2)
    assert seen == [("w1\n\n\n\nw2", {"add_special_tokens": False, "verbose": False})]


def test_no_warning_about_long_texts(tiny_tokenizer, caplog):
    caplog.set_level(logging.DEBUG)
    load_batches([words(40)], tiny_tokenizer, nsamples=1, seqlen=32)  # its model_max_length is 16
    assert "longer than" not in caplog.text


def test_seed_picks_chunks_in_order(tiny_tokenizer):
    def first_tokens(seed):
        return ids(load_batches([words(96)], tiny_tokenizer, nsamples=6, seqlen=4, seed=seed))[:, 0].tolist()

    assert first_tokens(None) == [0, 4, 8, 12, 16, 20]
    assert first_tokens(0) == first_tokens(0) != first_tokens(1)
    assert first_tokens(0) == sorted(first_tokens(0)) and all(token % 4 == 0 for token in first_tokens(0))


def test_only_enough_documents_are_tokenised(tiny_tokenizer):
    documents = [words(8, start=8 * i) for i in range(12)]

    def first_tokens(seed):  # 2 chunks of 2 tokens: 64 characters, of which a document has about 30
        return ids(load_batches(documents, tiny_tokenizer, nsamples=2, seqlen=2, seed=seed)).flatten().tolist()

    assert first_tokens(None) == [0, 1, 2, 3]
    assert first_tokens(0) == first_tokens(0)
    assert len({tuple(first_tokens(seed)) for seed in range(5)}) > 1
    for seed in range(5):
        kept = data_batches._sample_documents(documents, 64, seed)
        assert len(kept) == 3 and kept == sorted(kept, key=documents.index)
    assert data_batches._sample_documents(documents, 10**6, 0) == documents


def test_random_numbers_are_untouched(tiny_tokenizer):
    before = random.getstate(), torch.get_rng_state()
    load_batches([words(96)], tiny_tokenizer, nsamples=3, seqlen=4)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_fewer_chunks_than_wanted(tiny_tokenizer, caplog):
    found = load_batches([words(11)], tiny_tokenizer, nsamples=3, seqlen=4)
    assert ids(found).flatten().tolist() == list(range(8))
    assert "'texts' is too short for 3 chunks of 4 tokens: using 2 of 4." in caplog.text


def test_short_text_is_one_short_chunk(tiny_tokenizer, caplog):
    assert ids(load_batches(["w1 w2"], tiny_tokenizer, nsamples=1, seqlen=4)).tolist() == [[1, 2]]
    assert "'texts' is too short for 1 chunks of 4 tokens: using 1 of 2." in caplog.text


# Tokens as they are


@pytest.mark.parametrize(
    "make", [list, lambda tensor: tensor, lambda tensor: tensor.int(), lambda tensor: tensor.numpy()]
)
def test_tokens_are_used_as_they_are(make):
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    given = make(tokens.tolist()) if make is list else make(tokens)
    found = load_batches(({"input_ids": item, "labels": None} for item in (given, [7, 8])), nsamples=1, seqlen=1)
    assert [list(batch) for batch in found] == [["input_ids"]] * 2
    assert [batch["input_ids"].tolist() for batch in found] == [tokens.tolist(), [[7, 8]]]
    assert all(batch["input_ids"].dtype == torch.int64 for batch in found)
    assert (found.source, found.ntokens) == ("tokens", 8)


def test_masks_are_kept_and_counted():
    found = load_batches([{"input_ids": [[1, 2, 3]], "attention_mask": [[0, 1, 1]]}, {"input_ids": [[4]]}])
    assert found.batches[0]["attention_mask"].tolist() == [[0, 1, 1]]
    assert found.ntokens == 3


def test_one_mapping_is_one_batch(tiny_tokenizer):
    found = load_batches(tiny_tokenizer(["w1 w2", "w3 w4"]))
    assert found.batches[0]["input_ids"].tolist() == [[97, 1, 2], [97, 3, 4]]


def test_token_batches_pass_through():
    given = TokenBatches([{"input_ids": torch.tensor([[1, 2]])}], "c4", groups=(1,))
    assert load_batches(given) == given


@pytest.mark.parametrize(
    "blank",
    [
        {"input_ids": []},
        {"input_ids": torch.empty(1, 0, dtype=torch.long)},
        {"input_ids": [0, 0], "attention_mask": [0, 0]},
        None,
    ],
    ids=["row", "tensor", "padding", "none"],
)
def test_batches_without_tokens_are_left_out(blank, caplog):
    found = load_batches([{"input_ids": [1, 2]}, blank, {"input_ids": [3]}])
    assert [batch["input_ids"].tolist() for batch in found] == [[[1, 2]], [[3]]]
    assert ("1 of 3 tokenised batches have no tokens: left out." in caplog.text) == (blank is not None)


def test_batches_that_are_left_out_take_their_group_along():
    blank, full = {"input_ids": torch.empty(1, 0, dtype=torch.long)}, {"input_ids": torch.tensor([[1]])}
    assert load_batches(TokenBatches([full, blank, full], "c4", (0, 1, 2))).groups == (0, 2)


def test_tokens_are_counted_by_group():
    masked = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])}
    batches = [masked, {"input_ids": torch.tensor([[4], [5]])}, masked]
    assert TokenBatches(batches, "c4").groups == (0, 0, 0)
    found = TokenBatches(batches, "c4", [0, 2, 0])
    assert (found.groups, found.tokens_by_group, found.ntokens) == ((0, 2, 0), [4, 0, 2], 6)
    with pytest.raises(ValueError, match="2 groups for 3 batches; give the group of every batch"):
        TokenBatches(batches, "c4", (0, 1))


# Errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"dataset": "wikitxt2"},
            r"Unknown dataset 'wikitxt2'. Did you mean 'wikitext2'\? Give 'auto', one of \['wiki",
        ),
        ({"dataset": "Some words, and no name."}, r"Unknown dataset 'Some words.*'. Give 'auto'.* or a list of texts"),
        ({"dataset": "python-docs", "split": "dev"}, r"split='dev' of dataset 'python-docs'.*\['train', 'test'\]"),
        (
            {"dataset": Path(__file__)},
            "Unknown extension of .*.py.. Convert it to one of .txt, .json, .jsonl",
        ),
        ({"dataset": ["", " \n"]}, "No text in dataset 'texts': every document is empty"),
        ({"dataset": ["w1"]}, "No tokens to use in dataset 'texts': its text has 1, and 2 are needed"),
        ({"dataset": ["w1 w2"], "tokenizer": None}, "is text and no tokenizer is known: pass tokenizer="),
        ({"dataset": ["w1 w2"], "nsamples": 0}, "nsamples=0 must be at least 1"),
        ({"dataset": ["w1 w2"], "seqlen": 0}, "seqlen=0 must be at least 1"),
        ({"dataset": ["w1 w2"], "batch_size": -1}, "batch_size=-1 must be at least 1"),
        ({"dataset": ["w95 w90"], "vocab_size": 95}, r"ids from 90 to 95 are not all in \[0, 95\).* does not belong"),
        ({"dataset": [{"input_ids": [-1, 2]}], "vocab_size": 95}, r"ids from -1 to 2 are not all in \[0, 95\)"),
        ({"dataset": None}, "The dataset is empty"),
        ({"dataset": []}, "The dataset is empty. Give a name, paths, texts or tokenised batches"),
        ({"dataset": iter(())}, "The dataset is empty"),
        (
            {"dataset": [{"input_ids": [1]}, {"text": "w1"}]},
            r"must be a mapping with 'input_ids', got \['text'\]. Give text",
        ),
        ({"dataset": [torch.ones(2)]}, "must be a mapping with 'input_ids', got Tensor"),
        ({"dataset": [{"input_ids": [[1.0]]}]}, r"input_ids must be integers .*, got shape \(1, 1\) of torch.float32"),
        (
            {"dataset": [{"input_ids": [[[1]]]}]},
            r"input_ids must be integers of shape \(batch, tokens\), got shape \(1, ",
        ),
        ({"dataset": [{"input_ids": [[]]}]}, r"input_ids must be integers .*, got shape \(1, 0\)"),
        ({"dataset": [{"input_ids": [[1, 2], [3]]}]}, "input_ids must be integers .*, got a ragged list"),
        (
            {"dataset": [{"input_ids": [[1, 2]], "attention_mask": [[1]]}]},
            r"attention_mask must have the shape of input_ids, \(1, 2\), .*; got shape \(1, 1\), 1 nonzero",
        ),
        (
            {"dataset": [{"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}]},
            "attention_mask must .* not be all zero; got .*, 0 nonzero",
        ),
    ],
)
def test_errors(tiny_tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_batches(**{"tokenizer": tiny_tokenizer} | arguments)
