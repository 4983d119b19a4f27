"""
Reads texts to calibrate on and to evaluate on: named datasets, files, or the documents themselves.

Importing `datasets` takes about 80 MB of memory, so it is imported where it is used.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from huggingface_hub.utils import get_session, httpx
from transformers.utils import logging

from .tables import list_items, read_column, read_rows


logger = logging.get_logger(__name__)


TEST_MODULES = (
    "textwrap heapq statistics shlex configparser difflib calendar fractions mailbox tarfile zipfile csv cmd pprint "
    "uuid"
).split()
"""Modules of the standard library whose source is the test split."""

TRAIN_MODULES = (
    "bisect contextlib json/decoder random glob html/parser functools colorsys ftplib gettext copy "
    "collections optparse sched poplib asyncio/queues enum queue selectors shutil types socketserver "
    "urllib/parse wave weakref string trace tempfile webbrowser dataclasses xml/dom/minidom subprocess "
    "logging argparse"
).split()
"""Those whose source is the train split: of many kinds, and none of them private, a test or a table."""

CODE_PER_PROSE = 1.5
"""Characters of code for each character of prose: all topics alone are fewer tokens than a calibration takes."""


def read_documentation(split: str) -> list[str]:
    """Returns topics of `help()`. Every fifth, from the first in order of their names, is of the test split."""
    return [topics[name] for index, name in enumerate(sorted(topics)) if (index % 5 == 0) == (split == "test")]


def read_code(modules: Iterable[str]) -> list[str]:
    """Returns the source of modules of the standard library. Modules that this Python lacks are left out."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [library / name for module in modules for name in (f"{module}.py", f"{module}/__init__.py")]
    return [file.read_text(encoding="utf-8") for file in files if file.is_file()]


def read_prose_and_code(split: str) -> list[str]:
    """Returns topics and pieces of source in turns, each piece `CODE_PER_PROSE` times as long as the topic before."""
    code = "\n\n".join(read_code(TEST_MODULES if split == "test" else TRAIN_MODULES))
    documents, start = [], 0
    for topic in read_documentation(split):
        # A piece ends with a line; the last one, where there is no more.
        stop = code.find("\n", start + round(CODE_PER_PROSE * len(topic))) + 1 or len(code)
        documents += [topic, code[start:stop]]
        start = stop
    return documents


@dataclass(frozen=True)
class NamedDataset:
    """
    The place of a named dataset.

    Args:
        path (`str`, *optional*): repository on the Hub.
        name (`str`, *optional*): configuration of the repository.
        text_column (`str`, defaults to `"text"`): column that holds the text.
        running_text (`bool`, defaults to `False`): whether rows are consecutive pieces of one text, not documents.
        splits (`Mapping[str, str]`): `"train"` and `"test"` -> the repository's names for them.
        data_files (`Mapping[str, str]`): `"train"` and `"test"` -> one file, where a split has too many to load.
        revision (`str`, *optional*):
            Branch of converted files, where the main branch holds a script, which `datasets` does not run.
        read (`Callable[[str], list[str]]`, *optional*): reads a split of what is on no Hub, but comes with Python.
    """

    path: str | None = None
    name: str | None = None
    text_column: str = "text"
    running_text: bool = False
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    data_files: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    read: Callable[[str], list[str]] | None = None


DATASETS = {
    "wikitext2": NamedDataset("Salesforce/wikitext", "wikitext-2-raw-v1", running_text=True),
    "ptb": NamedDataset(
        "ptb-text-only/ptb_text_only", text_column="sentence", running_text=True, revision="refs/convert/parquet"
    ),
    "c4": NamedDataset(
        "allenai/c4",
        splits={"train": "train", "test": "validation"},
        data_files={"train": "en/c4-train.00000-of-01024.json.gz", "test": "en/c4-validation.00000-of-00008.json.gz"},
    ),
    "alpaca": NamedDataset("tatsu-lab/alpaca", splits={"train": "train[20%:]", "test": "train[:20%]"}),
    "pile-10k": NamedDataset("NeelNanda/pile-10k", splits={"train": "train[:90%]", "test": "train[90%:]"}),
    "python": NamedDataset(read=read_prose_and_code),
    "python-docs": NamedDataset(read=read_documentation),
}

BROAD, OFFLINE = "pile-10k", "python"
"""What `"auto"` is, where the Hub or its cache answers and where not. Both are of several kinds."""

OWN_TEXT = "self"
"""Name of text that the dense model writes."""

NAMES = ("auto", OWN_TEXT, *DATASETS)
"""Names that `SliceGPTConfig.dataset` accepts."""

TABLES = (".json", ".jsonl", ".parquet")
"""Extensions of files that hold rows with named columns."""
_EXTENSIONS = (".txt", *TABLES)
_FILE_NAME = re.compile(r"\S{1,250}\.[A-Za-z][A-Za-z0-9]{0,7}")


def load_texts(dataset: Any, *, split: str = "train", text_column: str | None = None) -> tuple[list[str], str]:
    """
    Reads the documents of a dataset.

    Args:
        dataset:
            A name of `DATASETS`; `"auto"` (pile-10k where the Hub or its cache answers, otherwise python, with a
            warning); a path or list of paths to .txt files (one document each) or .json, .jsonl or .parquet tables; a
            list of texts; or rows in memory, see [`list_items`].
        split (`str`, defaults to `"train"`):
            `"train"` or `"test"`. Named datasets only.
        text_column (`str`, *optional*):
            Column that holds the text. By default the dataset's own; of a file, "text" or the only column of strings.

    Returns:
        `tuple`: the documents, `list[str]`, and the name of the data that was used, `str`.

    Raises:
        ConnectionError: a named dataset is neither on the Hub nor in its cache.
        FileNotFoundError: a path is not a file.
        ValueError: the name, split, file extension or column is unknown; a file is unreadable; an item is neither text
            nor a row; there is no text.
    """
    if isinstance(dataset, str) and dataset == "auto":
        try:
            return _read_named(BROAD, split, text_column), BROAD
        except ConnectionError as error:
            logger.warning_once(
                f"Using dataset={OFFLINE!r}, prose and code that Python ships: {BROAD!r} is out of reach. A model "
                "does worse on other text than on what it was calibrated and measured on. Give files of the text that "
                f"it will read, or be online once. {error.__cause__}"
            )
            dataset = OFFLINE
    items = list_items(dataset)
    if not isinstance(dataset, str) and (names := [item for item in items if isinstance(item, str) and item in NAMES]):
        raise ValueError(
            f"{names} among {len(items)} texts: names of datasets, which only slicing mixes (SliceGPTConfig.dataset). "
            "Give one name, or paths, or texts."
        )
    if isinstance(dataset, str) and (dataset in DATASETS or not _is_path(dataset)):
        documents, source = _read_named(dataset, split, text_column), dataset
    elif all(map(_is_path, items)):
        if missing := [str(path) for path in items if not os.path.exists(path)]:
            raise FileNotFoundError(f"There is no file {', '.join(missing)}; give paths from the present folder.")
        documents = [document for path in items for document in _read_file(Path(path), text_column)]
        source = ", ".join(Path(path).name for path in items)
    else:
        documents, source = _read_items(items, text_column)
    if not any(document.strip() for document in documents):
        raise ValueError(f"No text in dataset {source!r}: every document is empty. Give at least one with some words.")
    return documents, source


def is_generated(source: Any) -> bool:
    """Tells whether the model writes the text of a source."""
    return isinstance(source, str) and source == OWN_TEXT


def _is_path(item: Any) -> bool:
    # An extension makes an item a path: a misspelt "corpus.txt" is a missing file, not a text.
    if isinstance(item, str):
        return os.path.isfile(item) or _extension(item) in _EXTENSIONS or _FILE_NAME.fullmatch(item) is not None
    return isinstance(item, os.PathLike)


def _extension(path: str | os.PathLike) -> str:
    return os.path.splitext(path)[1].lower()


def _read_items(items: list[Any], text_column: str | None) -> tuple[list[str], str]:
    """Returns the texts of items in memory, strings or rows, and the name of their kind."""
    rows = any(isinstance(item, Mapping) for item in items)
    for number, item in enumerate(items):
        if not isinstance(item, Mapping if rows else str):
            kind = "rows" if rows else "texts"
            raise ValueError(
                f"Item {number} of {len(items)} {kind} is of type {type(item).__name__}: {str(item)[:40]!r}. Give "
                "strings, or rows with a column of strings, and nothing else among them."
            )
    return (read_column(items, text_column, "rows"), "rows") if rows else (items, "texts")


def _read_named(name: str, split: str, text_column: str | None) -> list[str]:
    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        allowed = f"'auto', one of {list(DATASETS)}, a file ({', '.join(_EXTENSIONS)}) that exists, or a list of texts"
        raise ValueError(f"Unknown dataset {name[:80]!r}.{hint} Give {allowed}.")
    row = DATASETS[name]
    if split not in row.splits:
        raise ValueError(f"Unknown split={split!r} of dataset {name!r}. Choose one of {list(row.splits)}.")
    if row.read is not None:
        return row.read(split)

    import datasets

    hub_split = row.splits[split]
    data_files = {hub_split: row.data_files[split]} if row.data_files else None
    # `datasets` retries an unreachable Hub for half a minute. In offline mode it looks into its cache at once.
    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was_offline or not _hub_answers()
    try:
        rows = datasets.load_dataset(row.path, row.name, split=hub_split, data_files=data_files, revision=row.revision)
    # `datasets` raises a ValueError where the cache lacks the configuration.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        remedy = f"Use dataset={OFFLINE!r}, which needs no network, or a file; or load it online and keep the cache."
        raise ConnectionError(f"Cannot load {name!r} ({row.path}) from Hub or cache: {error}. {remedy}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    column = text_column or row.text_column
    if column in rows.column_names:
        rows = ({column: text} for text in rows[column] if text is not None)
    documents = read_column(rows, column, name)
    return ["\n\n".join(documents)] if row.running_text else documents


def _hub_answers() -> bool:
    import datasets

    try:
        get_session().head(datasets.config.HF_ENDPOINT, timeout=5)
    except (httpx.TransportError, OSError):
        return False
    return True


def _read_file(path: Path, text_column: str | None) -> list[str]:
    if _extension(path) not in _EXTENSIONS:
        raise ValueError(f"Unknown extension of {str(path)!r}. Convert it to one of {', '.join(_EXTENSIONS)}.")
    if _extension(path) == ".txt":
        marked = path.read_bytes().startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            return [path.read_text(encoding="utf-16" if marked else "utf-8-sig")]  # without a byte-order mark
        except UnicodeDecodeError as error:
            raise ValueError(f"Cannot read {str(path)!r} as text: {error}; save it in UTF-8.") from error
    return read_column(read_rows(path), text_column, path.name)
