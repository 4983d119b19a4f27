"""
Reads tables as rows, mappings from names of columns to values. A table is a file, or an object in memory.

What a file holds decides how it is read, not its name. Rows may have keys that others lack.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

Row = dict[str, Any]

_BLANKS = re.compile(r"[ \t\n\r]*")


def list_items(dataset: Any) -> list[Any]:
    """
    Lists the items of a dataset: names, paths, texts, rows or tokenised batches. Missing ones are left out.

    Args:
        dataset:
            A name or a path; an iterable of items; a mapping, which is one tokenised batch, one row or a table; a
            table of pandas, polars or pyarrow.

    Raises:
        ValueError: the dataset has splits, each with a table of its own.

    Examples:
        >>> list_items(["A text.", None, float("nan")]), list_items({"text": ["one", "two"]})
        (['A text.'], [{'text': 'one'}, {'text': 'two'}])
    """
    if dataset is None:
        return []
    if type(dataset).__name__ in ("DatasetDict", "IterableDatasetDict"):
        splits = [*dataset]
        one_of_them = next((f"give one of them, such as dataset[{split!r}]" for split in splits), "give data")
        raise ValueError(f"The data has the splits {splits}; {one_of_them}.")
    if isinstance(dataset, str | os.PathLike):
        return [dataset]
    if hasattr(dataset, "to_pylist"):  # pyarrow
        dataset = dataset.to_pylist()
    elif hasattr(dataset, "to_dicts"):  # polars
        dataset = dataset.to_dicts()
    elif hasattr(dataset, "columns") and hasattr(dataset, "to_dict"):  # pandas, which iterates over names of columns
        dataset = dataset.to_dict("records")
    elif isinstance(dataset, Mapping):
        dataset = [dataset] if "input_ids" in dataset else _unwrap(dataset)
    return [item for item in dataset if not is_missing(item)]


def holds_text(items: Iterable[Any]) -> bool:
    """Tells whether items are text: names, paths, strings, or rows that are not tokenised."""
    rows = [item for item in items if isinstance(item, Mapping)]
    strings = any(isinstance(item, str | os.PathLike) for item in items)
    return not any("input_ids" in row for row in rows) and (strings or bool(rows))


def is_missing(value: Any) -> bool:
    """Tells whether a value stands for none: `None`, NaN, or what pandas has in their place."""
    nan = isinstance(value, float) and math.isnan(value)
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def read_rows(path: Path) -> list[Row]:
    """
    Reads the rows of a JSON or parquet file.

    Args:
        path (`Path`):
            Parquet; or JSON, one object a line or one value: a list of rows, texts or conversations, an object of
            columns, or one that holds such a list. UTF-8, 16 or 32, with or without a byte-order mark.

    Raises:
        ValueError: the file holds something else.
    """
    content = path.read_bytes()
    try:
        if content.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        values = list(_json_values(content.decode(json.detect_encoding(content))))
        items = _unwrap(values[0]) if len(values) == 1 else values
        return [_row(item) for item in items if not is_missing(item)]
    except ValueError as error:
        raise ValueError(f"Cannot read {str(path)!r} as a table of rows with named columns: {error}.") from error


def read_column(rows: Iterable[Mapping[str, Any]], text_column: str | None, source: str) -> list[str]:
    """
    Reads the texts of a column. Rows without one are left out, with a warning.

    Args:
        rows (`Iterable[Mapping[str, Any]]`): the table.
        text_column (`str`, *optional*): by default "text", or the only column of strings.
        source (`str`): names the table in messages.

    Raises:
        ValueError: there is no such column of strings; a row has something other than a string there.
    """
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    strings = [name for name in names if any(isinstance(row.get(name), str) for row in rows)]
    column = text_column or ("text" if "text" in strings or len(strings) != 1 else strings[0])
    if column not in strings:
        allowed = f"its columns of strings: {strings}; all its columns: {names}"
        raise ValueError(f"No strings in text_column={column!r} of {source!r}. Choose one of {allowed}.")
    texts = []
    for number, row in enumerate(rows):
        if isinstance(value := row.get(column), str):
            texts.append(value)
        elif not is_missing(value):
            raise ValueError(f"Row {number} of {source!r} has {str(value)[:40]!r} in {column!r}, which is no string.")
    if len(texts) < len(rows):
        logger.warning(f"{len(rows) - len(texts)} of {len(rows)} rows of {source!r} have no {column!r}: left out.")
    return texts


def _json_values(text: str) -> Iterator[Any]:
    """Yields the values that a text holds, one after another."""
    decoder, position = json.JSONDecoder(), _BLANKS.match(text).end()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        yield value
        position = _BLANKS.match(text, position).end()


def _unwrap(value: Any) -> list[Any]:
    """Returns the items of a value that may be a list, a row, columns, or an object that holds a list of rows."""
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping) or not value or _is_row(value):
        return [value]
    columns = list(value.values())
    if all(isinstance(column, Mapping) for column in columns):  # as pandas writes by default, or with orient="index"
        by_row = all(str(name).isdecimal() for name in value)
        indices = dict.fromkeys(index for column in columns for index in column)
        return columns if by_row else [{name: value[name].get(index) for name in value} for index in indices]
    tables = [column for column in columns if _is_table(column)]
    of_one_length = all(isinstance(column, list) for column in columns) and len(set(map(len, columns))) == 1
    if len(tables) == 1 and not (of_one_length and len(columns) > 1):
        # A row's text is longer than its links or tags, and a table's texts are longer than its title or version.
        beside = [column for column in columns if isinstance(column, str)]
        return [value] if _longest(beside) > _longest(tables[0]) else tables[0]
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)] if of_one_length else [value]


def _is_row(value: Mapping[str, Any]) -> bool:
    texts = any(isinstance(value.get(key), str) for key in ("text", "instruction"))
    return texts or _is_conversation(value.get("messages"))


def _is_table(value: Any) -> bool:
    rows = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    return rows and all(isinstance(item, Mapping) or is_missing(item) or _is_conversation(item) for item in value)


def _longest(value: Any) -> int:
    """Returns the length of the longest string in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return max(map(_longest, parts), default=0)


def _is_conversation(value: Any) -> bool:
    messages = isinstance(value, list) and len(value) > 0
    return messages and all(isinstance(message, Mapping) and "role" in message for message in value)


def _row(item: Any) -> Row:
    """
    Returns an item of a list as a row.

    Raises:
        ValueError: it is no row, text or conversation.
    """
    if isinstance(item, str):
        return {"text": item}
    if _is_conversation(item):
        return {"messages": item}
    if not isinstance(item, Mapping):
        raise ValueError(f"it has {str(item)[:40]} in place of a row, a text or a conversation")
    return dict(item)
