"""Reads instruction data, tables or rows, as conversations: lists of messages with a role and a content."""

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.tables import is_missing, list_items, read_rows
from ..data.texts import TABLES
from .chat import Conversation


def load_conversations(dataset: Any) -> tuple[list[Conversation], str] | None:
    """
    Reads the conversations of a dataset, if it holds any.

    Args:
        dataset:
            Paths of json, jsonl or parquet files, or rows in memory, see [`list_items`]. A row has `messages`,
            perhaps with `tools`, a list of JSON schemas or such a list as JSON; or an `instruction`, perhaps with an
            `input`, and its `output`; or an `instruction` and `instances`, each with an `output` and perhaps an
            `input`. Blank rows do not count. A table with a column `text`, or with neither
            `messages` nor `instruction`, holds texts.

    Returns:
        `tuple`: the conversations and the name of their source, `str`; or `None`, if the dataset holds texts.

    Raises:
        ValueError: a file is unreadable; a row is not a conversation in which an assistant answers.
    """
    items = list_items(dataset)
    if items and all(isinstance(item, Mapping) for item in items):
        tables, source = [items], "conversations"
    elif items and all(isinstance(item, str | os.PathLike) and _is_table(Path(item)) for item in items):
        tables, source = [read_rows(Path(item)) for item in items], ", ".join(Path(item).name for item in items)
    else:
        return None
    if not all(map(_holds_conversations, tables)):
        return None
    conversations, rows = [], itertools.chain.from_iterable(tables)
    for number, row in enumerate(rows):
        # Tables have all keys in every row.
        row = {key: value for key, value in row.items() if not is_missing(value)}
        if not all(map(_is_blank, row.values())):
            conversations += _conversations(row, number, source)
    return conversations, source


def _is_blank(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else isinstance(value, list) and not value


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES and path.is_file()


def _holds_conversations(rows: list[Mapping[str, Any]]) -> bool:
    columns = {name for row in rows for name in row}
    return "text" not in columns and not columns.isdisjoint(("messages", "instruction"))


def _conversations(row: Mapping[str, Any], number: int, source: str) -> list[Conversation]:
    """Reads the conversations of one row: one of `messages`, or one of each instance of an instruction."""
    where = f"Row {number} of {source!r}"

    def text(given, key):
        value = None if is_missing(given.get(key)) else given[key]
        if not isinstance(value, str | None):
            raise ValueError(f"{where} has {str(value)[:40]!r} in {key!r}, which is no string.")
        return value

    if "messages" in row:
        messages = row["messages"] if isinstance(row["messages"], Iterable) else [row["messages"]]
        if not all(isinstance(message, Mapping) for message in messages):
            raise ValueError(f"{where} has messages that are no list of objects.")
        # A table fills keys that a message does not have with None.
        conversations = [[{key: value for key, value in message.items() if value is not None} for message in messages]]
    elif "instruction" in row:
        conversations = [
            [
                {
                    "role": "user",
                    "content": "\n\n".join(filter(None, map(text, (row, instance), ("instruction", "input")))),
                },
                {"role": "assistant", "content": text(instance, "output")},
            ]
            for instance in row.get("instances") or [row]
        ]
    else:
        raise ValueError(f"{where} has neither messages nor an instruction, only {list(row)}.")
    for messages in conversations:
        roles = [message.get("role") for message in messages]
        says_nothing = (message.get("content") is None and not message.get("tool_calls") for message in messages)
        if "assistant" not in roles[1:] or any(says_nothing):
            raise ValueError(
                f"{where} is no conversation: every message needs a role, and a content or calls of tools, and after "
                f"the first one an assistant must answer. Its roles are {roles}."
            )
    return [Conversation(messages, _tools(row.get("tools"), where)) for messages in conversations]


def _tools(given: Any, where: str) -> list[dict[str, Any]] | None:
    """Reads the tools of a conversation, which tables may hold as JSON."""
    try:
        given = json.loads(given or "null") if isinstance(given, str) else given
    except ValueError:
        given = [None]
    tools = [] if given is None else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"{where} has tools that are no list of objects.")
    return tools or None
