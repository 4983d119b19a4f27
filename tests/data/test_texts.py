"""Texts: named datasets, files, documents."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from huggingface_hub.utils import httpx

from optimum_slicegpt.data import texts
from optimum_slicegpt.data.texts import DATASETS, load_texts


@pytest.fixture
def offline(monkeypatch):
    def unreachable(path, *args, **kwargs):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(texts, "_hub_answers", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)


@pytest.fixture
def hub(monkeypatch):
    """Gives every dataset on the Hub four rows; returns the calls."""
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
        ("pile-10k", "train", "NeelNanda/pile-10k", None, {"split": "train[:90%]"}),
        ("pile-10k", "test", "NeelNanda/pile-10k", None, {"split": "train[90%:]"}),
    ],
)
def test_named_datasets_ask_the_hub(hub, name, split, path, config, kwargs):
    documents, source = load_texts(name, split=split)
    assert source == name
    assert documents == (["\n\nw1 w2\n\nw3"] if DATASETS[name].running_text else ["", "w1 w2", "w3"])
    assert hub == [(path, config, {"data_files": None, "revision": None} | kwargs)]


def test_named_dataset_takes_another_column(hub):
    assert load_texts("alpaca", text_column="other") == (["x"] * 4, "alpaca")


def test_auto_is_broad_where_the_hub_answers(hub, caplog):
    assert load_texts("auto")[1] == "pile-10k"
    assert not caplog.records


def test_auto_falls_back_with_a_warning(offline, caplog):
    assert load_texts("auto") == load_texts("auto") == load_texts("python")
    told = (
        "Using dataset='python', prose and code that Python ships: 'pile-10k' is out of reach. A model does worse on "
    )
    assert caplog.text.count(told) == 1 and "or be online once. Couldn't" in caplog.text


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
    with pytest.raises(ConnectionError, match=f"Cannot load 'c4'.*{error}.*dataset='python', which.*keep the"):
        load_texts("c4")


@pytest.mark.parametrize("as_path", [str, Path])
def test_txt_is_one_document(tmp_path, as_path):
    path = tmp_path / "a.txt"
    path.write_text("w1\n\n\nw2\n")
    assert load_texts(as_path(path)) == (["w1\n\n\nw2\n"], "a.txt")


def test_txt_in_other_encodings(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("w1 é", encoding="utf-16")  # as Windows calls Unicode
    assert load_texts(path)[0] == ["w1 é"]
    path.write_text("w1 é", encoding="latin-1")
    with pytest.raises(ValueError, match=r"Cannot read .*a.txt' as text: 'utf-8' codec can't .*; save it in UTF-8."):
        load_texts(path)


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


@pytest.mark.parametrize(
    "dataset, missing",
    [
        ("no/such.txt", "no/such.txt"),
        (Path("no/such.txt"), "no/such.txt"),
        (["no/such.txt", __file__, "no/such.csv"], "no/such.txt, no/such.csv"),
        ([__file__, "such.csv"], "such.csv"),
        (["such.csv"], "such.csv"),
    ],
)
def test_missing_files(dataset, missing):
    with pytest.raises(FileNotFoundError, match=f"There is no file {missing}; give paths from the present folder"):
        load_texts(dataset)


def test_words_are_no_names_of_files():
    for documents in (["such.csv", "w1 w2"], ["w1", "www.such"], ["3.14", "w1"]):
        assert load_texts(documents) == (documents, "texts")


def test_columns_that_do_not_fit(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"n": 1, "question": "w1", "answer": "w2"}])
    columns = r"Choose one of its columns of strings: \['question', 'answer'\]; all its columns: \['n', 'quest"
    with pytest.raises(ValueError, match=f"No strings in text_column='text' of 'a.jsonl'. {columns}"):
        load_texts(path)
    with pytest.raises(ValueError, match=f"No strings in text_column='n' of 'a.jsonl'. {columns}"):
        load_texts(path, text_column="n")


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.jsonl", '{"text": "w1"', "Expecting "),
        ("a.json", "[1]", "it has 1 in place of a row"),
        ("a.json", '[["w1", "w2"]]', r"it has \['w1', 'w2'\] in place of a row"),
        ("a.json", '[["ab", "cd"]]', r"it has \['ab', 'cd'\] in place of a row"),  # which `dict` takes as columns
        ("a.parquet", "x", ""),
    ],
)
def test_unreadable_tables(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"Cannot read .*{name}' as a table of rows with named columns: {reason}"):
        load_texts(path)
