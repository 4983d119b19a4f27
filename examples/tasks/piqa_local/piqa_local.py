"""Reads PIQA's validation set as its authors publish it: questions in `valid.jsonl`, answers in `valid-labels.lst`."""

import json
from pathlib import Path

from datasets import Dataset


def load(piqa: str | None = None, **_) -> dict[str, Dataset]:
    """
    Reads the questions for lm-eval, which calls this function with the values of `--metadata`.

    Args:
        piqa (`str`): the folder with both files.

    Raises:
        ValueError: no folder is given; one file has more lines than the other.
        FileNotFoundError: a file is missing.
    """
    if piqa is None:
        raise ValueError('Where is PIQA? Give its folder: --metadata \'{"piqa": "FOLDER"}\'.')
    questions = [json.loads(line) for line in (Path(piqa) / "valid.jsonl").read_text().splitlines()]
    labels = [int(line) for line in (Path(piqa) / "valid-labels.lst").read_text().split()]
    rows = [question | {"label": label} for question, label in zip(questions, labels, strict=True)]
    return {"validation": Dataset.from_list(rows)}
