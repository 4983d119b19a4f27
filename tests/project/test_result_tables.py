"""Tables of results say what rows have seen, and which commits measured them."""

from importlib import import_module
from types import SimpleNamespace

import pytest
from paths import ROOT


KINDS = ["wikitext2", "tasks", "python-docs", "code"]


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    """Lets tests import the scripts, which write results to a folder of their own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = {name: import_module(name) for name in ("common", "formatting", "quality_tables")}
    for name in ("common", "quality_tables"):
        monkeypatch.setattr(found[name], "RESULTS", tmp_path)
    return SimpleNamespace(**found)


def test_what_a_model_has_seen_is_marked(benchmarks):
    row = {"excess": {"tasks": 0.5}, "stderr": {"tasks": 0.01}, "seen": ["tasks"]}
    assert benchmarks.quality_tables.format_excess(row, "tasks") == r"0.500 ± 0.010 \*"
    assert "mean of all" in benchmarks.quality_tables.losses([row])
    assert "mean of all" not in benchmarks.quality_tables.losses([row | {"seen": []}])


def test_recoveries_have_a_table(benchmarks):
    row = {"commit": "1" * 40, "excess": dict.fromkeys(KINDS, 0.5), "stderr": dict.fromkeys(KINDS, 0.01)}
    row |= {"seen": [], "mean": 0.5, "mean_stderr": 0.02, "worst": 0.5}
    trained = row | {"trained_tokens": 2048, "seconds": 90.0, "tokens_per_s": 22.8}
    runs = {"dense": {"commit": "1" * 40}, "sliced": row, "recovered": trained}
    benchmarks.common.write("recovery", {"chunks": 2, "length": 16, "runs": runs})
    lines = benchmarks.quality_tables.recovery().splitlines()
    assert "| recovered | 2,048 | 0.500 ± 0.020 | 0.500 | 0.500 ± 0.010 |" in lines[4] and "| 90 s | 23 |" in lines[4]
    assert lines[-1].startswith("Measured on 2 chunks of 16 tokens of each kind; commit ")


def test_rows_of_a_model_are_of_one_commit(benchmarks):
    common, formatting = benchmarks.common, benchmarks.formatting
    named = {model: {"model": model, "method": "default"} for model in ("large", "small")}
    runs = [named["large"] | {"method": "dense"}, named["large"] | {"commit": "3" * 40}]
    runs += [named["small"] | {"commit": digit * 40} for digit in "121"]
    common.write("quality", {"runs": runs})
    found = common.results("quality")
    assert [row.get("commit", "dense")[:1] for row in found["runs"]] == ["d", "3", "1", "1"]
    found["uncommitted_changes"] = False
    text = formatting.add_source(found, {"model": "{model}"}, found["runs"], "Facts")
    assert text.splitlines()[-1].startswith("Facts; commits `3333333`, `1111111`, torch ")
