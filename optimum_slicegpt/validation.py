"""What the configurations check of their values."""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import convert_file_size_to_int


DTYPES = ("float16", "bfloat16", "float32", "float64")


class Validated:
    """Checks of the values of a configuration. They raise `ValueError` with the setting, its value and a remedy."""

    def _require(self, key: str, holds: bool, remedy: str) -> None:
        """Checks that a condition on one setting holds."""
        if not holds:
            raise ValueError(f"{key}={getattr(self, key)!r}; {remedy}.")

    def _require_bools(self, *keys: str) -> None:
        """Checks that settings are `True` or `False`: a text such as "no" would count as true."""
        for key in keys:
            self._require(key, isinstance(getattr(self, key), bool), "give True or False")

    def _require_choice(self, key: str, choices: Sequence[str | None]) -> None:
        """Checks that a setting is one of several values."""
        names = ", ".join(name for name in choices if name)
        self._require(key, getattr(self, key) in choices, f"choose one of {names}")

    def _require_dtype(self, key: str, others: tuple[str | None, ...] = ()) -> None:
        """Checks that a setting names a dtype or is one of other values, and stores the name of a `torch.dtype`."""
        value = getattr(self, key)
        if isinstance(value, torch.dtype):
            setattr(self, key, str(value).removeprefix("torch."))
        self._require_choice(key, (*others, *DTYPES))

    def _require_device(self, key: str) -> None:
        """Checks that a setting, unless it is `None`, names a device, and stores the name of a `torch.device`."""
        if getattr(self, key) is None:
            return
        setattr(self, key, str(getattr(self, key)))
        try:
            torch.device(getattr(self, key))
        except RuntimeError as error:
            raise ValueError(
                f"{key}={getattr(self, key)!r} is not a torch device, such as 'cpu' or 'cuda:0'."
            ) from error


def is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    return (is_int(value) or isinstance(value, float)) and math.isfinite(value)


def file_size(size: int | str) -> int:
    """
    Converts a size to bytes.

    Args:
        size (`int`, `float` or `str`): whole bytes, or a number with a unit: `"1GiB"`, `"50GB"`.

    Raises:
        ValueError: no unit, no number, or a negative one.
    """
    try:
        return convert_file_size_to_int(int(size) if isinstance(size, float) and size.is_integer() else size)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{size!r} is no size; give a number with a unit, such as 512MiB, 2GiB or 50GB.") from error


def storable_dataset(dataset: Any) -> str | list[str] | None:
    """
    Returns a dataset as JSON can hold it: a name, a path, or a list of them or of texts. Anything else is `None`.

    Examples:
        >>> storable_dataset("auto"), storable_dataset([{"text": "A text."}])
        ('auto', None)
    """
    if isinstance(dataset, str | os.PathLike):
        return os.fspath(dataset)
    if isinstance(dataset, list | tuple) and all(isinstance(item, str | os.PathLike) for item in dataset):
        return [os.fspath(item) for item in dataset]
    return None
