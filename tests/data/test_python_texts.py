"""Texts that come with Python."""

import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

from optimum_slicegpt.data import texts
from optimum_slicegpt.data.texts import TEST_MODULES, TRAIN_MODULES, load_texts, read_code, read_prose_and_code


def test_documentation_is_split_by_topic():
    (train, source), (test, _) = load_texts("python-docs"), load_texts("python-docs", split="test")
    assert source == "python-docs"
    assert sorted(train + test) == sorted(topics.values())
    assert test == [topics[topic] for topic in sorted(topics)[::5]]


def test_prose_and_code_take_turns():
    for split in ("train", "test"):
        found, source = load_texts("python", split=split)
        prose, code = found[::2], found[1::2]
        assert source == "python" and prose == load_texts("python-docs", split=split)[0]
        modules = TEST_MODULES if split == "test" else TRAIN_MODULES
        assert "\n\n".join(read_code(modules)).startswith("".join(code))
        assert all(piece.endswith("\n") for piece in code)
        assert 1.4 < sum(map(len, code)) / sum(map(len, prose)) < 1.6


def test_no_module_is_in_both_splits():
    assert not set(TEST_MODULES) & set(TRAIN_MODULES)
    assert len(read_code(TEST_MODULES)) == len(TEST_MODULES)


def test_a_module_that_is_missing_is_left_out(monkeypatch):
    library = Path(sysconfig.get_path("stdlib"))
    assert read_code(["heapq", "no_such_module"]) == [(library / "heapq.py").read_text(encoding="utf-8")]
    monkeypatch.setattr(texts, "TRAIN_MODULES", ["bisect"])  # and where there is little, all of it is used
    assert "".join(read_prose_and_code("train")[1::2]) == (library / "bisect.py").read_text(encoding="utf-8")
