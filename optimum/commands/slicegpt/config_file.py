"""Files of flags: `--config FILE` reads what `compress` has written beside an earlier result."""

import sys
from argparse import Action, ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from pathlib import Path
from typing import Any

from .parsing import did_you_mean


def expand(parser: ArgumentParser, args: list[str]) -> list[str]:
    """
    Returns a command line with the flags of its `--config` file in front, those that it gives itself left out.

    Args:
        parser (`ArgumentParser`): knows the flags; ends the program, with a message, if the file has others.
        args (`list[str]`): the command line.
    """
    given = [each.partition("=")[0] for each in args]
    if "--config" not in given:
        return args
    flag, _, path = args[given.index("--config")].partition("=")
    path = path or next(iter(args[given.index(flag) + 1 :]), "")
    if not path:
        return args  # argparse says that a file is missing.
    known, expanded = parser._option_string_actions, []
    groups = [group._group_actions for group in parser._mutually_exclusive_groups]
    flags = [known[each] for each in given if each in known]
    for key, value in _read(parser, path).items():
        action = known.get(f"--{str(key).replace('_', '-')}")
        if action is None or action.dest == "config":
            names = [each.removeprefix("--").replace("-", "_") for each in known]
            parser.error(f"{path} has no setting {key}{did_you_mean(str(key).replace('-', '_'), names)}")
        if action in flags:
            continue
        rivals = [each for group in groups if action in group for each in given if known.get(each) in group]
        if rivals:
            print(f"{key}={value} of {path} is left out, because {rivals[0]} is given.", file=sys.stderr)
        else:
            expanded += _as_flag(parser, action, value, f"{path}: {key}")
    return [*expanded, *args]


def _read(parser: ArgumentParser, path: str) -> dict[str, Any]:
    import yaml  # only here, because it takes a moment

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {path}: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"--config {path} is no YAML: {error}")
    if not isinstance(found, dict):
        parser.error(f"--config {path} holds no settings, such as parameter_reduction: 0.2")
    return found


def _as_flag(parser: ArgumentParser, action: Action, value: Any, where: str) -> list[str]:
    """Returns the flag that sets a value, and nothing for one that is not set."""
    if value is None:
        return []
    flag = action.option_strings[0]
    if action.nargs == 0:
        if not isinstance(value, bool):
            parser.error(f"{where}: {value!r} is neither true nor false")
        if isinstance(action, BooleanOptionalAction):
            return [action.option_strings[0 if value else 1]]
        return [flag] * value
    values = value if isinstance(value, list) else [value]
    if len(values) > 1 and action.nargs is None:
        parser.error(f"{where} takes one value")
    for each in values:
        try:
            if isinstance(each, bool | dict | list):
                raise ArgumentTypeError(f"{each!r} is no value of {flag}")
            typed = action.type(str(each)) if action.type else each
        except (ArgumentTypeError, ValueError) as error:
            parser.error(f"{where}: {error}")
        if action.choices is not None and typed not in action.choices:
            parser.error(f"{where}: {each!r} is none of {', '.join(action.choices)}")
    return [flag, *map(str, values)]
