"""Formats rows of results as tables of Markdown, with what holds for all their rows below them."""

import html
import re
from collections.abc import Callable

from common import is_dense


GIB = 2**30
PARAMETERS = {"parameters": lambda run: f"{run['parameters'] / 1e6:.1f} M"}
PEAK = {"peak memory": "{peak_gib:.2f} GiB"}
FILES = {"valid.txt": "WikiText-2's validation split", "test.txt": "WikiText-2's test split"}
FILES |= {"split, self": "split and of its own text"}
"""What the files are whose names are in the results."""
OUTSIDE_HISTORY = {"9ce2a240dc129ff199a6c1facce01d8822b8cae7"}
"""Commits in the results that this repository does not have."""


def table(columns: dict[str, str | Callable[[dict], str]], rows: list[dict]) -> str:
    """
    Formats rows as a table of Markdown.

    Args:
        columns (`dict`):
            Title -> a format string for the values of a row, or a function that formats the cell of a row. The cell is
            empty if the row lacks one of its values (`KeyError`). A column without any cell is left out.
        rows (`list[dict]`): results.
    """

    def cell(column, row):
        try:
            return column.format_map(row) if isinstance(column, str) else column(row)
        except KeyError:
            return ""

    cells = {title: [cell(column, row) for row in rows] for title, column in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    lines = [cells, ["---"] * len(cells), *zip(*cells.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def add_source(found: dict, columns: dict, rows: list[dict], *facts: str) -> str:
    """Returns a table, and below it facts about its rows, their commits, the versions and the machine."""
    versions, machine = found["versions"], found["machine"]
    source = f"torch {versions['torch']}, transformers {versions['transformers']}"
    source += f", {machine['cores']} core{'s' * (machine['cores'] > 1)} of {machine['processor']}"
    if not all(map(is_dense, rows)):  # Rows of the dense model may be of another commit.
        # Nobody can check out code that had uncommitted changes, or a commit outside the history.
        measured = [row.get("commit", found["commit"]) for row in rows if not is_dense(row) and "label" not in row]
        unknown = found["uncommitted_changes"] or OUTSIDE_HISTORY & {*measured}
        commits = ["unknown"] if unknown else [f"`{commit[:7]}`" for commit in dict.fromkeys(measured)]
        source = f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}, {source}"
    caption = "; ".join([*facts, source])
    for name, text in FILES.items():
        caption = caption.replace(name, text)
    return f"{table(columns, rows)}\n\n{caption}."


def escape(text: str) -> str:
    """Returns a text as a cell of a table shows it, line breaks included."""
    text = re.sub(r"[|`*_\[\]\\~$#{}]", lambda match: f"&#{ord(match[0])};", html.escape(text, quote=False))
    return text.replace("\n", "<br>")
