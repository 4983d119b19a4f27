"""The page on troubleshooting has every message of the package, and no other."""

import ast
import re

import pytest
from paths import ROOT


PAGE = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## From other libraries")[0]
ON_PAGE = re.findall(r"^> `(.+)`$", PAGE, flags=re.M)
WARNINGS = ("logger.warning", "logger.warning_once", "logger.error")
REASONS = ("stock_obstacle", "narrow_obstacle")
"""Functions that return a part of a message, for others to raise."""


def messages(tree):
    """Yields the expressions of all messages that are raised or logged as warnings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            if ast.unparse(node.exc.func) != "AttributeError":  # a module's `__getattr__`, in Python's words
                yield node.exc.args[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in WARNINGS:
            yield node.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_require":
            remedy, anything = node.args[2], node.func  # a configuration says `key=value; remedy.`
            ends = remedy.values if isinstance(remedy, ast.JoinedStr) else [remedy]
            parts = [anything, ast.Constant("="), anything, ast.Constant("; "), *ends, ast.Constant(".")]
            yield ast.copy_location(ast.JoinedStr(parts), node)
        elif isinstance(node, ast.FunctionDef) and node.name in REASONS:
            yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Return))


def pattern(expression) -> str | None:
    """Returns a regular expression that matches a message, or `None` if the expression is no text."""
    parts = expression.values if isinstance(expression, ast.JoinedStr) else [expression]
    texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
    if not any(isinstance(text, str) for text in texts):
        return None
    return "".join(".*" if text is None else re.escape(" ".join(text.split("\n"))) for text in texts)


def in_source():
    for folder in ("optimum_slicegpt", "optimum"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for expression in messages(ast.parse(file.read_text())):
                where = f"{file.relative_to(ROOT)}:{expression.lineno}" if expression is not None else ""
                yield where, expression


IN_SOURCE = {where: found for where, expression in in_source() if expression and (found := pattern(expression))}


@pytest.mark.parametrize("where", IN_SOURCE)
def test_every_message_is_on_the_page(where):
    assert any(re.fullmatch(IN_SOURCE[where], message) for message in ON_PAGE), IN_SOURCE[where]


def test_every_message_on_the_page_is_in_the_source():
    stale = [message for message in ON_PAGE if not any(re.fullmatch(each, message) for each in IN_SOURCE.values())]
    assert stale == []


def test_every_message_has_a_remedy():
    bare = re.findall(r"^> `(.+)`\n+(?=>|#|\Z)", PAGE, flags=re.M)
    assert bare == []


def test_messages_without_text_are_known():
    """A function of `REASONS` may find none."""
    without = {ast.unparse(each) for _, each in in_source() if each is not None and pattern(each) is None}
    assert without == {"None"}
