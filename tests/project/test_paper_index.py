"""The index of the paper names what exists: functions and settings."""

import pkgutil
import re
from dataclasses import fields

import pytest
from paths import ROOT

from optimum_slicegpt import RecoveryConfig, SliceGPTConfig


NAMES = sorted(set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8"))))
SETTINGS = {field.name for config in (SliceGPTConfig, RecoveryConfig) for field in fields(config)}


@pytest.mark.parametrize("name", [name for name in NAMES if re.fullmatch(r"[a-z_]+(\.\w+)+", name)])
def test_functions(name):
    assert pkgutil.resolve_name(f"optimum_slicegpt.{name}") is not None


@pytest.mark.parametrize("name", [name for name in NAMES if re.fullmatch(r"\w+=\S+", name)])
def test_settings(name):
    assert name.partition("=")[0] in SETTINGS


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tests/")])
def test_files(name):
    assert (ROOT / name).is_file()
