"""Tables of every form in which people have them, as files and in memory."""

import json

import datasets
import numpy
import pandas
import pyarrow
import pytest

from optimum_slicegpt.data.batches import load_batches
from optimum_slicegpt.data.tables import read_rows
from optimum_slicegpt.data.texts import load_texts


TEXTS = ["one", "two\u2028 2"]
ROWS = [{"text": text, "n": number} for number, text in enumerate(TEXTS)]
LINES = "\n".join(map(json.dumps, ROWS))
FRAME = pandas.DataFrame(ROWS)


# Files: what they hold decides, not their name


@pytest.mark.parametrize("name", ["rows.json", "rows.JSONL"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES + "\n\n",
        LINES.replace("}\n", "}\r\n \r\n"),
        "null\n" + LINES,
        json.dumps(ROWS),
        json.dumps([*ROWS, None], indent=2),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        json.dumps({"data": ROWS}),
        json.dumps({"version": 1, "names": ["text", "n"], "rows": ROWS}),
        json.dumps({"text": TEXTS, "n": [0, 1]}),
        json.dumps({"text": TEXTS}),
        json.dumps(TEXTS),
        "\n".join(map(json.dumps, TEXTS)),
        FRAME.to_json(),
        FRAME.to_json(orient="index"),
        FRAME.to_json(orient="table"),
    ],
    ids="lines blank-lines crlf null list indented objects data several columns column strings string-lines".split()
    + ["pandas", "pandas-index", "pandas-table"],
)
def test_json_in_every_form(content, name, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    assert load_texts(path) == (TEXTS, name)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(encoding, tmp_path):
    path, text = tmp_path / "rows.jsonl", tmp_path / "text.TXT"
    path.write_text(LINES, encoding=encoding)
    assert read_rows(path) == ROWS
    text.write_text("one", encoding="utf-8-sig")
    assert load_texts(text) == (["one"], "text.TXT")


def test_parquet_under_the_name_of_json(tmp_path):
    FRAME.to_parquet(tmp_path / "rows.json")
    assert read_rows(tmp_path / "rows.json") == ROWS


def test_one_row_is_a_row(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[0] | {"tags": [{"a": 1}]}))
    assert read_rows(tmp_path / "rows.json") == [ROWS[0] | {"tags": [{"a": 1}]}]


@pytest.mark.parametrize(
    "value, text",
    [
        ({"content": "one", "tags": [{"a": 1}]}, "one"),
        ({"content": "one two", "tags": [{"a": "two"}]}, "one two"),
        ({"version": "1", "rows": [{"content": "one"}]}, "one"),
        ({"version": "1", "rows": [{"content": "one"}], "authors": ["two", "three"]}, "one"),
    ],
)
def test_objects_in_a_row_are_told_from_rows_by_the_longest_text(value, text, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(value))
    assert load_texts(tmp_path / "rows.jsonl")[0] == [text]


# Keys that the first row lacks


@pytest.mark.parametrize(
    "rows",
    [
        [{"title": "t"}, {"title": "t", "text": "one"}, {"text": "two"}],
        [{"text": None}, {"text": "one"}, {"text": "two", "later": {"a": 1}}],
        [{"text": float("nan"), "n": 1}, {"text": "one", "n": "1"}, {"text": "two", "n": [1]}],
    ],
    ids=["later", "null", "types-that-differ"],
)
def test_rows_may_differ(rows, tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_texts(path)[0] == load_texts(rows)[0] == ["one", "two"]
    assert "1 of 3 rows of 'rows.jsonl' have no 'text': left out." in caplog.text


# In memory


@pytest.mark.parametrize(
    "dataset, source",
    [
        ([TEXTS[0], None, TEXTS[1]], "texts"),
        (pandas.Series([*TEXTS, float("nan"), pandas.NA]), "texts"),
        (numpy.array(TEXTS), "texts"),
        (iter([*TEXTS, None]), "texts"),
        (ROWS, "rows"),
        ({"text": TEXTS, "n": [0, 1]}, "rows"),
        (FRAME, "rows"),
        (pyarrow.table({"text": TEXTS}), "rows"),
        (datasets.Dataset.from_list(ROWS), "rows"),
        (datasets.Dataset.from_list(ROWS)["text"], "texts"),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "rows"),
    ],
    ids="none series array iterator rows columns pandas pyarrow dataset column stream".split(),
)
def test_what_is_in_memory(dataset, source):
    seen = []

    def tokenizer(text, **kwargs):
        return seen.append(text) or {"input_ids": [1, 2]}

    assert load_batches(dataset, tokenizer, nsamples=1, seqlen=2).source == source
    assert seen == ["\n\n".join(TEXTS)]


@pytest.mark.parametrize(
    "dataset, message",
    [
        (["one", 7], "Item 1 of 2 texts is of type int: '7'. Give strings, or rows with a column of strings"),
        (["one", ["two"]], "Item 1 of 2 texts is of type list"),
        ([b"one", "two"], "Item 0 of 2 texts is of type bytes"),
        ([{"text": "one"}, "two"], "Item 1 of 2 rows is of type str: 'two'. Give strings, or rows"),
        ([{"text": "one"}, {"text": 7}], "Row 1 of 'rows' has '7' in 'text', which is no string."),
        ([{"n": 1}], r"No strings in text_column='text' of 'rows'. .* strings: \[\]; all its columns: \['n'\]"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
            r"The data has the splits \['train'\]; give one of them, such as dataset\['train'\].",
        ),
        (datasets.DatasetDict(), r"The data has the splits \[\]; give data."),
    ],
)
def test_what_is_no_text_is_named(dataset, message):
    with pytest.raises(ValueError, match=message):
        load_batches(dataset, lambda text, **kwargs: {"input_ids": [1, 2]})
