import json
import logging
import random
from pathlib import Path
from pydoc_data.topics import topics

import datasets
import pytest
import torch
from datasets import Dataset
from huggingface_hub.utils import httpx

from optimum_slicegpt import calibration, texts
from optimum_slicegpt.calibration import TokenBatches, load_batches
from optimum_slicegpt.texts import DATASETS, load_texts


def words(n, start=0):
    return " ".join(f"w{i % 96}" for i in range(start, start + n))


def ids(batches):
    return torch.cat([batch["input_ids"] for batch in batches])


@pytest.fixture
def offline(monkeypatch):
    def unreachable(path, *args, **kwargs):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(texts, "_hub_answers", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)


@pytest.fixture
def hub(monkeypatch):
    """Every dataset on the Hub has four rows; returns the calls."""
    calls = []

    def load_dataset(path, name=None, **kwargs):
        calls.append((path, name, kwargs))
        column = "sentence" if "ptb" in path else "text"
        return Dataset.from_dict({column: ["", "w1 w2", None, "w3"], "other": ["x"] * 4})

    monkeypatch.setattr(texts, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


# Sources


@pytest.mark.parametrize(
    "name, split, path, config, kwargs",
    [
        ("wikitext2", "train", "Salesforce/wikitext", "wikitext-2-raw-v1", {"split": "train"}),
        ("ptb", "test", "ptb-text-only/ptb_text_only", None, {"split": "test", "revision": "refs/convert/parquet"}),
        (
            "c4",
            "train",
            "allenai/c4",
            None,
            {"split": "train", "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}},
        ),
        (
            "c4",
            "test",
            "allenai/c4",
            None,
            {"split": "validation", "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}},
        ),
        ("alpaca", "train", "tatsu-lab/alpaca", None, {"split": "train[20%:]"}),
        ("alpaca", "test", "tatsu-lab/alpaca", None, {"split": "train[:20%]"}),
    ],
)
def test_named_datasets_ask_the_hub(hub, name, split, path, config, kwargs):
    documents, source = load_texts(name, split=split)
    assert source == name
    assert documents == (["\n\nw1 w2\n\nw3"] if DATASETS[name].running_text else ["", "w1 w2", "w3"])
    assert hub == [(path, config, {"data_files": None, "revision": None} | kwargs)]


def test_named_dataset_takes_another_column(hub):
    assert load_texts("alpaca", text_column="other") == (["x"] * 4, "alpaca")


def test_auto_is_wikitext2_where_the_hub_answers(hub, caplog):
    assert load_texts("auto")[1] == "wikitext2"
    assert not caplog.records


def test_auto_falls_back_with_a_warning(offline, caplog):
    assert load_texts("auto") == load_texts("python-docs")
    assert "Using dataset='python-docs': 'wikitext2' is out of reach. Couldn't reach 'Salesforce/wik" in caplog.text


def test_auto_does_not_swallow_programming_errors(monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a mistake")

    monkeypatch.setattr(texts, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(TypeError, match="a mistake"):
        load_texts("auto")


def test_an_unreachable_hub_is_not_retried(monkeypatch):
    seen = []
    monkeypatch.setattr(texts, "_hub_answers", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args, **kwargs: seen.append(datasets.config.HF_HUB_OFFLINE) or Dataset.from_dict({"text": ["w1"]}),
    )
    assert load_texts("wikitext2") == (["w1"], "wikitext2")
    assert seen == [True] and datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("error, answers", [(None, True), (httpx.ConnectError("no"), False), (OSError(), False)])
def test_hub_answers(monkeypatch, error, answers):
    class Session:
        def head(self, url, timeout):
            if error:
                raise error

    monkeypatch.setattr(texts, "get_session", Session)
    assert texts._hub_answers() is answers


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("Couldn't find cache")])
def test_named_dataset_out_of_reach(monkeypatch, error):
    def unreachable(*args, **kwargs):
        raise error

    monkeypatch.setattr(texts, "_hub_answers", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=f"Cannot load 'c4'.*{error}.*dataset='python-docs'.*keep the"):
        load_texts("c4")


def test_python_docs_are_split_by_topic():
    (train, source), (test, _) = load_texts("python-docs"), load_texts("python-docs", split="test")
    assert source == "python-docs"
    assert sorted(train + test) == sorted(topics.values())
    assert test == [topics[topic] for topic in sorted(topics)[4::5]]


@pytest.mark.parametrize("as_path", [str, Path])
def test_txt_is_one_document(tmp_path, as_path):
    path = tmp_path / "a.txt"
    path.write_text("w1\n\n\nw2\n")
    assert load_texts(as_path(path)) == (["w1\n\n\nw2\n"], "a.txt")


ROWS = [{"n": 1, "text": "w1", "other": "x"}, {"n": 2, "text": "w2\u2028w3", "other": "y"}]


def write(path, rows):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("extension", ["json", "jsonl", "parquet"])
def test_tables(tmp_path, extension):
    path = write(tmp_path / f"a.{extension}", ROWS)
    assert load_texts(path) == (["w1", "w2\u2028w3"], f"a.{extension}")
    assert load_texts(path, text_column="other")[0] == ["x", "y"]
    only = write(tmp_path / f"b.{extension}", [{"n": 1, "prompt": "w1"}])
    assert load_texts(str(only))[0] == ["w1"]


def test_lists_of_paths_and_of_texts(tmp_path):
    table, text = write(tmp_path / "a.jsonl", ROWS), tmp_path / "b.txt"
    text.write_text("w4")
    assert load_texts([str(table), str(text)]) == (["w1", "w2\u2028w3", "w4"], "a.jsonl, b.txt")
    assert load_texts([str(text), "w1 w2"]) == ([str(text), "w1 w2"], "texts")


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
        kept = calibration._enough(documents, 64, seed)
        assert len(kept) == 3 and kept == sorted(kept, key=documents.index)
    assert calibration._enough(documents, 10**6, 0) == documents


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
    given = TokenBatches([{"input_ids": torch.tensor([[1, 2]])}], "c4")
    assert load_batches(given) == given


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
            {"dataset": Path("notes.docx")},
            "Unknown extension of 'notes.docx'. Convert it to one of .txt, .json, .jsonl",
        ),
        ({"dataset": ["", " \n"]}, "No text in dataset 'texts': every document is empty"),
        ({"dataset": ["w1"]}, "No tokens to use in dataset 'texts': its text has 1, and 2 are needed"),
        ({"dataset": ["w1 w2"], "tokenizer": None}, "is text and no tokenizer is known: pass tokenizer="),
        ({"dataset": ["w1 w2"], "nsamples": 0}, "nsamples=0 must be at least 1"),
        ({"dataset": ["w1 w2"], "seqlen": 0}, "seqlen=0 must be at least 1"),
        ({"dataset": ["w1 w2"], "batch_size": -1}, "batch_size=-1 must be at least 1"),
        ({"dataset": ["w95 w90"], "vocab_size": 95}, r"ids from 90 to 95 are not all in \[0, 95\).* does not belong"),
        ({"dataset": [{"input_ids": [-1, 2]}], "vocab_size": 95}, r"ids from -1 to 2 are not all in \[0, 95\)"),
        ({"dataset": []}, "The dataset is empty. Give a name, paths, texts or tokenised batches"),
        ({"dataset": iter(())}, "The dataset is empty"),
        (
            {"dataset": [{"text": "w1"}]},
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


@pytest.mark.parametrize("dataset", ["no/such.txt", Path("no/such.txt"), ["no/such.txt"]])
def test_missing_file(dataset):
    with pytest.raises(FileNotFoundError, match="No such file.*'no/such.txt'"):
        load_texts(dataset)


def test_columns_that_do_not_fit(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"n": 1, "question": "w1", "answer": "w2"}])
    columns = r"Choose one of its columns of strings: \['question', 'answer'\]; all its columns: \['n', 'quest"
    with pytest.raises(ValueError, match=f"No strings in text_column='text' of 'a.jsonl'. {columns}"):
        load_texts(path)
    with pytest.raises(ValueError, match=f"No strings in text_column='n' of 'a.jsonl'. {columns}"):
        load_texts(path, text_column="n")


@pytest.mark.parametrize("name, content", [("a.jsonl", '{"text": "w1"'), ("a.json", "[1]"), ("a.parquet", "x")])
def test_unreadable_tables(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"Cannot read .*{name}' as a table of rows with named columns: "):
        load_texts(path)
