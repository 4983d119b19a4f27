"""The benchmark of recovery measures models before and after, on kinds of text."""

import json
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import tiny
import torch
from paths import ROOT

from optimum_slicegpt import SliceGPTConfig


KINDS = ["wikitext2", "tasks", "python-docs", "code"]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Returns the script, whose runs stay in this process and whose results go to a folder of their own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = import_module("recovery")
    for module in ("common", "recovery"):
        monkeypatch.setattr(import_module(module), "RESULTS", tmp_path / "results")

    def in_this_process(path, *flags):
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["script", *flags])
            patch.setattr("builtins.print", found.append)
            script.main()
        return json.loads(found[-1])

    monkeypatch.setattr(script, "in_fresh_process", in_this_process)
    return script


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """Writes small data sets, a dense model and a sliced one."""
    (tmp_path / "wikitext-2").mkdir()
    for name, seed in {"valid": 1, "test": 2}.items():
        words = (f"w{token}" for token in tiny.tokens(1, 500, seed=seed)[0].tolist())
        (tmp_path / "wikitext-2" / f"{name}.txt").write_text(" ".join(words))
    task = {"instruction": "w1 w2", "instances": [{"input": "", "output": " ".join(["w5"] * 40)}]}
    (tmp_path / "seed_tasks.jsonl").write_text("\n".join([json.dumps(task)] * 100))
    for name in ("dense", "sliced"):
        model = tiny.build("llama", torch.float32, vocab_size=98)
        if name == "sliced":
            model.compress(SliceGPTConfig(parameter_reduction=0.1, dataset=tiny.calibration()))
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_a_recovery_is_measured_before_and_after(script, folder, monkeypatch):
    sizes = {"data": folder, "dense": folder / "dense", "sliced": folder / "sliced", "keep": folder / "kept"}
    sizes |= {"nsamples": 8, "seqlen": 16, "chunks": 1, "length": 16}
    flags = [f"--{key}={value}" for key, value in sizes.items()]
    names = ["dense", "sliced", "recovered", "specialist"]
    monkeypatch.setattr(script, "RUNS", names)
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    script.main()
    runs = json.loads((folder / "results" / "recovery.json").read_text())["runs"]
    assert [*runs] == names and all([*row["nll"]] == KINDS for row in runs.values())
    assert [name for name in names if "commit" in runs[name]] == names[1:]  # The dense row is of any commit.
    assert all([*runs[name]["excess"]] == KINDS for name in names[1:])
    assert [runs[name]["seen"] for name in names[1:]] == [[], [], ["wikitext2"]]
    record = SimpleNamespace(**runs["recovered"])
    assert record.source == "valid.txt, self" and record.trained_tokens == record.steps * 4 * 16
    assert record.tokens_per_s > 0 and {"before", "after"} == record.held_out_losses.keys()
    assert sorted(path.name for path in (folder / "kept").iterdir()) == ["recovered", "specialist"]
