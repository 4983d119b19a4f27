"""Pages, tables and pictures that are written from code and results are what these give now."""

import runpy
import sys

import pytest
from paths import ROOT


SCRIPTS = sorted((ROOT / "docs").glob("generate_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_committed_files_are_what_the_script_writes(script):
    for path, text in runpy.run_path(script)["generate"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python docs/{script.name}`"


def test_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = sys.modules.get("tables") or __import__("tables")
    for page in tables.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert tables.fill(text) == text, f"{page}: run `python benchmarks/tables.py`"
