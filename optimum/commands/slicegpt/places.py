"""Checks of the places that a command reads from and writes to. They come before heavy imports, within a second."""

import json
import os
import re
import shutil
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .parsing import did_you_mean


MODELS = ("model", "baseline", "teacher")
OUTPUTS = ("output", "report", "figures")
NAMES = ("auto", "self", "wikitext2", "ptb", "c4", "alpaca", "pile-10k", "python", "python-docs")
"""Names of datasets."""
FILES = (".txt", ".json", ".jsonl", ".parquet")
"""Extensions of datasets."""
PACKAGES = {"Pictures": "matplotlib", "Reports": "jinja2"}
"""What a report is made with."""
_REPOSITORY = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def check_places(args: Namespace) -> None:
    """
    Checks the models, datasets and outputs of a command, as far as names and folders can tell.

    Args:
        args (`Namespace`): of any command.

    Raises:
        ImportError: a report is asked for, and a package that it needs is missing.
        OSError: a model, a dataset or a folder is not there; an output is, or cannot be written to.
        ValueError: the configuration of a model is none.
    """
    given = vars(args)
    for key in MODELS:
        if given.get(key) is not None:
            check_model(given[key], f"--{key}")
    for key in ("dataset", "eval_dataset"):
        values = given.get(key) or ()
        for value in [values] if isinstance(values, str | os.PathLike) else values:
            for each in value if isinstance(value, list) else [value]:
                check_dataset(str(each), f"--{key.replace('_', '-')}")
    for what, package in PACKAGES.items():
        if (given.get("report") or given.get("figures")) and find_spec(package) is None:
            raise ImportError(f'{what} need {package}: pip install "optimum-slicegpt[report]"')
    for key in () if given.get("plan") else OUTPUTS:  # A plan writes nothing.
        if given.get(key) is not None:
            if ".." in Path(given[key]).parts:  # The folders that such a path goes through need not be there.
                setattr(args, key, str(Path(given[key]).resolve()))
            check_writable(Path(given[key]), f"--{key}", given["overwrite"])
            check_apart(Path(given[key]), f"--{key}", given)


def check_model(name: str, flag: str) -> None:
    """
    Checks that a model is a folder with a configuration, or a name on the Hub that can be looked up.

    Raises:
        ConnectionError: it may be on the Hub, which does not answer, and is not in its cache.
        FileNotFoundError: there is no such folder, or no model in it.
        NotADirectoryError: it is a file.
        ValueError: its configuration is none.
    """
    path = Path(name)
    if path.is_file():
        raise NotADirectoryError(f"{flag} {name} is a file; give the folder that it is in.")
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = [str(each.parent) for each in sorted(path.glob("*/config.json"))[:3]]
            remedy = f"Perhaps one of {', '.join(inside)}." if inside else "Give the folder of a checkpoint."
            raise FileNotFoundError(f"{flag} {name} holds no model: there is no config.json. {remedy}")
        check_model_type(path / "config.json", flag)
        return
    if path.is_absolute() or not _REPOSITORY.fullmatch(name) or name.startswith("."):
        siblings = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no folder {flag} {name}{did_you_mean(name, siblings) or '.'}")
    from huggingface_hub import constants, try_to_load_from_cache

    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    if not constants.HF_HUB_OFFLINE and not hub_answers():
        constants.HF_HUB_OFFLINE = True  # Every file would be asked for, again and again, for a minute.
    if constants.HF_HUB_OFFLINE and not cached:
        here = [each.parent.as_posix() for each in Path().glob("*/config.json")]
        raise ConnectionError(
            f"{flag} {name} is no folder here and not in the Hub's cache, and the Hub cannot be asked: it does not "
            f"answer, or HF_HUB_OFFLINE is set{did_you_mean(name, here) or '. Check the name, or the network.'}"
        )


def check_model_type(file: Path, flag: str) -> None:
    """
    Checks that a configuration says of which type its model is.

    Raises:
        ValueError: it does not, or is no JSON.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{flag} {file.parent} holds no model: its config.json is no JSON. {error}") from error
    if not isinstance(config, dict) or not {"model_type", "auto_map"} & set(config):
        raise ValueError(f"{flag} {file.parent} holds no model: its config.json has no model_type.")


def hub_answers() -> bool:
    """Tells whether the Hub can be reached, within a few seconds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, httpx

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except (httpx.TransportError, OSError):
        return False
    return True


def check_dataset(name: str, flag: str) -> None:
    """
    Checks that a dataset is one of the known names or a file.

    Raises:
        FileNotFoundError: it is neither.
        IsADirectoryError: it is a folder.
    """
    path = Path(name)
    if path.is_dir():
        files = [
            each.name for each in sorted(path.iterdir()) if each.suffix in (".txt", ".json", ".jsonl", ".parquet")
        ]
        remedy = f"such as {path / files[0]}" if files else "in txt, json, jsonl or parquet"
        raise IsADirectoryError(f"{flag} {name} is a folder; give the files in it, {remedy}.")
    if name not in NAMES and not path.exists():
        siblings = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(name, [*NAMES, *siblings])
        raise FileNotFoundError(f"{flag} {name}: no dataset has that name, and no such file is there{hint or '.'}")


def check_apart(path: Path, flag: str, given: dict[str, Any]) -> None:
    """
    Checks that an output is not one of the models.

    Raises:
        FileExistsError: it is, so that it would be overwritten by what is made of it.
    """
    for key in MODELS:
        if given.get(key) is not None and path.resolve() == Path(given[key]).resolve():
            raise FileExistsError(f"{flag} {path} is --{key}, which would be overwritten; write elsewhere.")


def check_writable(path: Path, flag: str, overwrite: bool) -> None:
    """
    Checks that an output is absent, empty or to be overwritten, and that the folder that will hold it can be written
    to. What is overwritten is checked once the package is imported.

    Raises:
        FileExistsError: there is something else.
        PermissionError: the folder is read-only.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())) and not overwrite:
        raise FileExistsError(
            f"Output {str(path)!r} is there already; give a place that is absent or empty, or --overwrite."
        )
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{flag} {path} would be inside of {nearest}, which is a file; write elsewhere.")
    if not os.access(nearest, os.W_OK) or shutil.disk_usage(nearest).free == 0:
        raise PermissionError(f"{flag} {path}: {nearest} is read-only for you, or full; write elsewhere.")
