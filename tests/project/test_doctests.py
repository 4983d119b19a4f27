"""Examples in docstrings print what they say."""

import doctest
import importlib

import pytest
from paths import ROOT


NEEDS_A_MODEL = "optimum_slicegpt.evaluation.metrics.perplexity.perplexity"
"""A module whose example loads a sliced model from a folder."""


def modules_with_examples():
    for path in sorted(ROOT.glob("optimum_slicegpt/**/*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if ">>> " in path.read_text(encoding="utf-8") and name != NEEDS_A_MODEL:
            yield name


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_print_what_they_say(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
