"""`docs/supported_models.md` says what the table of families says."""

import runpy
from pathlib import Path


def test_committed_file_is_what_the_table_gives():
    script = runpy.run_path(Path(__file__).parents[1] / "docs" / "generate_supported_models.py")
    committed = script["FILE"].read_text(encoding="utf-8")
    assert committed == script["generate"](), "run `python docs/generate_supported_models.py`"
