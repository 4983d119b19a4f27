"""How the flags of `optimum-cli slicegpt` are read: errors in a line, the nearest flag, values with units."""

import difflib
import math
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError
from collections.abc import Iterable
from importlib import metadata


class Parser(ArgumentParser):
    """A parser that takes no abbreviations, and whose errors take a line or two instead of a page of usage."""

    @classmethod
    def adopt(cls, parser: ArgumentParser) -> None:
        """Makes a parser that another library has built one of this class, and parsers of its subcommands."""
        parser.__class__, parser.allow_abbrev = cls, False

    def parse_known_args(self, args=None, namespace=None):
        if "--config" in self._option_string_actions:
            from .config_file import expand

            args = expand(self, list(args))
        if self._subparsers is None:  # An unknown flag is named before what is missing, which it may have been.
            flags = [each.partition("=")[0] for each in args or () if each.startswith("--")]
            self._refuse([flag for flag in flags if flag not in self._option_string_actions])
        namespace, unknown = super().parse_known_args(args, namespace)
        self._refuse(unknown)
        return namespace, unknown

    def _refuse(self, unknown: list[str]) -> None:
        if unknown:
            kind = "flag" if unknown[0].startswith("-") else "value"
            self.error(f"unknown {kind} {unknown[0]}{did_you_mean(unknown[0], self._option_string_actions)}")

    def _check_value(self, action: Action, value) -> None:
        if action.choices is not None and value not in action.choices:
            allowed = ", ".join(map(str, action.choices))
            flag = action.option_strings[0] if action.option_strings else "command"
            self.error(f"{flag}: {value!r} is none of {allowed}{did_you_mean(value, action.choices)}")

    def error(self, message: str) -> None:
        message = " ".join(message.removeprefix("argument ").split())
        self.exit(2, f"error: {message}\nAll flags: {self.prog} --help\n")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """
    Returns the end of a message: the word that was probably meant.

    Examples:
        >>> did_you_mean("--sparcity", ["--sparsity", "--widths"]), did_you_mean("--wid", ["--widths"])
        ('; did you mean --sparsity?', '; did you mean --widths?')
    """
    known = [str(each) for each in known]
    begins = [each for each in known if each.startswith(str(word).replace("_", "-"))]
    nearest = begins or difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def share(text: str) -> float:
    """
    Reads a share in [0, 1).

    Examples:
        >>> share("0.2"), share("20%")
        (0.2, 0.2)
    """
    number = _number(text.removesuffix("%").rstrip(), "a share, such as 0.2 or 20%")
    number = number / 100 if text.endswith("%") else number
    if 1 < number < 100:
        raise ArgumentTypeError(f"{text!r} is more than all; {number:g} percent are {number:g}% or {number / 100:g}")
    if not 0 <= number < 1:
        raise ArgumentTypeError(f"{text!r} is no share in [0, 1), such as 0.2 or 20%")
    return number


def html_file(text: str) -> str:
    """
    Reads the name of an HTML file.

    Examples:
        >>> html_file("report.html")
        'report.html'
    """
    if not text.lower().endswith((".html", ".htm")):
        raise ArgumentTypeError(f"{text!r} is no name of an HTML file, such as report.html")
    return text


def positive(text: str) -> float:
    """Reads a positive number."""
    number = _number(text, "a number")
    if number <= 0:
        raise ArgumentTypeError(f"{text!r} is no positive number")
    return number


def increase(text: str) -> float:
    """
    Reads an increase of perplexity, in percent, as nats.

    Examples:
        >>> round(increase("10%"), 4)
        0.0953
    """
    if not text.endswith("%"):
        raise ArgumentTypeError(f"{text!r} is no increase in percent, such as 10%")
    return math.log1p(positive(text[:-1]) / 100)


def count(text: str) -> int:
    """Reads a positive integer."""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """Reads an integer that may be 0."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    number = _number(text.replace("_", ""), "a whole number")
    if number != int(number) or number < least:
        raise ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
    return int(number)


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
        int(number)  # Neither infinite nor NaN.
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is not {what}") from None
    return number


class Version(Action):
    """An action that prints the versions of this package and of those that compute, and ends the program."""

    def __init__(self, option_strings, dest, help, default=SUPPRESS):
        super().__init__(option_strings, dest, nargs=0, default=SUPPRESS, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        names = ("optimum-slicegpt", "torch", "transformers", "optimum")
        print(", ".join(f"{name} {metadata.version(name)}" for name in names))
        parser.exit()
