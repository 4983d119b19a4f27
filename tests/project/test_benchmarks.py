"""The benchmarks of quality measure what they say, on tiny models, and their tables hold what they measured."""

import json
import math
import statistics
import sys
from importlib import import_module
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest
import tiny
import torch
from paths import ROOT
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity


LENGTH = 16
KINDS = ["wikitext2", "tasks", "python-docs", "code"]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Lets tests import the scripts, which import each other by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return SimpleNamespace(
        **{name: import_module(name) for name in ("kinds", "quality", "prompts", "formatting", "quality_tables")},
        tables=sys.modules.get("tables") or import_module("tables"),
    )


@pytest.fixture
def data(tmp_path):
    """Writes small data sets, whose texts tell where they are from."""
    (tmp_path / "wikitext-2").mkdir()
    for name, seed in {"valid": 1, "test": 2}.items():
        words = (f"w{token}" for token in tiny.tokens(1, 70 * LENGTH + 3, seed=seed)[0].tolist())
        (tmp_path / "wikitext-2" / f"{name}.txt").write_text(" ".join(words))
    tasks = [
        {
            "instruction": f"Instruction {i}",
            "instances": [{"input": "", "output": f"first {i}"}, {"input": f"second {i}", "output": "w7 w8"}],
        }
        for i in range(100)
    ]
    (tmp_path / "seed_tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    return tmp_path


@pytest.fixture
def results(benchmarks, tmp_path, monkeypatch):
    """Sends results to a folder of their own."""
    folder = tmp_path / "results"
    for module in ("common", "quality", "prompts", "quality_tables"):
        monkeypatch.setattr(import_module(module), "RESULTS", folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """Writes a dense model, and one that was made of it."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("dense", "sliced"):
        model = tiny.build("llama", torch.float32, vocab_size=98)
        if name == "sliced":
            model.compress(SliceGPTConfig(parameter_reduction=0.1, dataset=tiny.calibration()))
        model.to(torch.bfloat16).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    return folder


def run(module, monkeypatch, *args):
    """Runs a script in this process."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, args)])
    module.main()


def test_splits_share_no_text(benchmarks, data):
    report, choose = (benchmarks.kinds.read_texts(data, split) for split in benchmarks.kinds.SPLITS)
    assert [*report] == KINDS and [*choose] == KINDS[:3]
    names = sorted(topics)
    assert report["python-docs"].startswith(topics[names[0]]) and choose["python-docs"].startswith(topics[names[1]])
    assert topics[names[5]] in report["python-docs"] and topics[names[5]] not in choose["python-docs"]
    assert "Instruction 86\n" in report["tasks"] and "Instruction 87" not in report["tasks"]
    assert choose["tasks"].startswith("Instruction 87\n\nfirst 87\nsecond 87\nw7 w8\n\nInstruction 88")
    assert report["code"].startswith('"""Text wrapping') and "class UUID" in report["code"]


def test_chunks_are_whole_and_those_that_calibrate_are_skipped(benchmarks, data, tiny_tokenizer):
    kinds = benchmarks.kinds.read_kinds(data, tiny_tokenizer, chunks=4, length=LENGTH)
    assert all(ids.shape == (4, LENGTH) for ids in kinds.values())
    assert torch.equal(kinds["wikitext2"].flatten(), tiny.tokens(1, 70 * LENGTH + 3, seed=2)[0, : 4 * LENGTH])
    chosen = benchmarks.kinds.read_kinds(data, tiny_tokenizer, "choose", chunks=100, length=LENGTH)
    expected = tiny.tokens(1, 70 * LENGTH + 3, seed=1)[0, 32 * LENGTH : 70 * LENGTH]
    assert torch.equal(chosen["wikitext2"].flatten(), expected)


@pytest.mark.parametrize("name", ["own.pt", "own.safetensors"])
def test_own_text_is_read_from_a_file(benchmarks, data, tiny_tokenizer, name):
    ids = tiny.tokens(9, LENGTH // 2)
    if name.endswith(".pt"):
        torch.save(ids, data / name)
    else:
        save_file({"input_ids": ids.int()}, data / name)
    kinds = benchmarks.kinds.read_kinds(data, tiny_tokenizer, "choose", 3, LENGTH, own=data / name)
    assert torch.equal(kinds["own"], ids[:6])


def test_losses_are_those_of_chunks(benchmarks, data, tiny_tokenizer):
    model = tiny.build("llama", vocab_size=98)
    found = benchmarks.kinds.measure(model, tiny_tokenizer, data, chunks=3, length=LENGTH)
    for kind, ids in benchmarks.kinds.read_kinds(data, tiny_tokenizer, chunks=3, length=LENGTH).items():
        expected = evaluate_perplexity(model, [{"input_ids": ids}])
        assert statistics.mean(found[kind]) == pytest.approx(expected.nll) and len(found[kind]) == 3


def test_the_excess_is_paired_and_leaves_out_what_was_seen(benchmarks):
    dense = {"wikitext2": [3.0, 1.0, 2.0], "tasks": [2.0, 2.5], "code": [1.0]}
    sliced = {"wikitext2": [3.1, 1.3, 2.2], "tasks": [3.0, 3.7], "code": [3.0]}
    found = benchmarks.kinds.excess(sliced, dense)
    assert found["excess"] == pytest.approx({"wikitext2": 0.2, "tasks": 1.1, "code": 2.0})
    assert found["stderr"]["wikitext2"] == pytest.approx(0.1 / math.sqrt(3))
    assert found["stderr"]["tasks"] == pytest.approx(0.1) and math.isnan(found["stderr"]["code"])
    assert found["mean"] == found["mean_of_all"] == pytest.approx(1.1)
    assert (found["worst"], found["worst_kind"], found["seen"]) == (2.0, "code", [])
    found = benchmarks.kinds.excess(sliced, dense, seen={"code"})
    assert found["mean"] == pytest.approx(0.65) and found["mean_of_all"] == pytest.approx(1.1)
    assert found["mean_stderr"] == pytest.approx(math.hypot(0.1 / math.sqrt(3), 0.1) / 2)
    assert (found["worst_kind"], found["seen"]) == ("tasks", ["code"])
    with pytest.raises(ValueError, match="zip"):
        benchmarks.kinds.excess({"tasks": [1.0]}, dense)


def test_half_of_wikitext_does_not_count_as_seen(benchmarks):
    seen = benchmarks.quality.seen_kinds
    assert seen("valid.txt") == {"wikitext2"} and seen("valid.txt, self") == seen("self") == seen("") == set()
    assert seen("python, self") == {"python-docs", "code"}


def test_models_are_compared_as_a_script(benchmarks, data, folders, monkeypatch, capsys):
    given = (f"--data={data}", f"--dense={folders / 'dense'}", "--chunks=2", f"--length={LENGTH}")
    run(benchmarks.kinds, monkeypatch, *given, "--model", f"same={folders / 'dense'}", f"other={folders / 'sliced'}")
    dense, same, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert same["perplexity"] == dense["perplexity"] and same["mean"] == same["worst"] == 0
    assert other["excess"]["code"] == pytest.approx(
        math.log(other["perplexity"]["code"] / dense["perplexity"]["code"])
    )


@pytest.fixture
def measured(benchmarks, data, folders, results, monkeypatch):
    """Measures rows of every kind, with each step in this process, and counts the steps."""
    quality, steps = benchmarks.quality, []

    def in_this_process(script, *args):
        steps.append(next(arg.removeprefix("--step=") for arg in args if arg.startswith("--step=")))
        with monkeypatch.context() as context:
            printed = []
            context.setattr("builtins.print", lambda *args, **kwargs: printed.append(args[0]))
            run(quality, context, *args)
        return json.loads(printed[-1])

    monkeypatch.setattr(quality, "in_fresh_process", in_this_process)
    monkeypatch.setitem(quality.METHODS, "paper", quality.PAPER | {"round_to": 4})

    def measure(*args):
        given = (f"--data={data}", f"--dense={folders / 'dense'}", "--name=SmolLM2-135M-Instruct", "--chunks=2")
        steps.clear()
        run(quality, monkeypatch, *given, f"--length={LENGTH}", "--repeats=0", "--dtype=float32", *args)
        return json.loads((results / "quality.json").read_text()), [*steps]

    return measure


def test_rows_are_measured_once(benchmarks, measured, folders, data):
    found, steps = measured("--reduction", 0.1, 0.2, "--nsamples=32")
    assert steps == ["measure", "slice", "measure", "slice", "measure"]
    dense, first, second = found["runs"]
    assert dense["method"] == "dense" and "commit" not in dense
    assert (first["reduction"], second["reduction"]) == (0.1, 0.2)
    assert first["parameters"] > second["parameters"] and second["parameters"] < 0.85 * dense["parameters"]
    assert first["calibrated_on"]["tokens"] == 32 * LENGTH and first["slicing_s"] > 0 and first["peak_gib"] > 0
    assert first["width"] and first["neurons"] and len(first["commit"]) == 40
    model = AutoModelForCausalLM.from_pretrained(folders / "dense", dtype=torch.bfloat16).float()
    tokenizer = benchmarks.quality.AutoTokenizer.from_pretrained(folders / "dense")
    losses = benchmarks.kinds.measure(model, tokenizer, data, chunks=2, length=LENGTH)
    assert dense["nll"] == losses
    expected = {kind: statistics.mean(first["nll"][kind]) - statistics.mean(losses[kind]) for kind in KINDS}
    assert first["excess"] == pytest.approx(expected)

    found, steps = measured("--reduction", 0.1, "--nsamples=32", "--folder", f"recovered={folders / 'sliced'}")
    assert steps == ["measure"] and [row["method"] for row in found["runs"]][-1] == "recovered"
    assert measured("--reduction", 0.1, "--nsamples=32")[1] == []
    assert measured("--reduction", 0.1, "--nsamples=32", "--again")[1] == ["slice", "measure"]


def test_sliced_models_are_kept_and_older_code_stands_apart(measured, tmp_path):
    given = ("--nsamples=32", "--keep", tmp_path / "kept", "--label=older")
    found, steps = measured(*given)
    assert steps == ["measure", "slice", "measure"] and len(found["runs"]) == 1
    assert [row["label"] for row in found["earlier"]] == ["older"]
    (folder,) = (tmp_path / "kept").iterdir()
    assert folder.name == "SmolLM2-135M-Instruct-older-default-0.2-32"
    assert measured(*given[:-1])[1] == ["slice", "measure"]
    assert measured("--nsamples=32", "--folder", f"again={folder}", "--seen", "tasks")[0]["runs"][-1]["seen"][-1] == (
        "tasks"
    )


def test_rows_of_another_protocol_do_not_stay(benchmarks, results):
    results.mkdir()
    (results / "quality.json").write_text(json.dumps({"runs": [{"method": "dense", "wikitext2": 21.2}]}))
    found = benchmarks.quality.Results({"protocol": benchmarks.quality.PROTOCOL}, again=False)
    assert found.content["runs"] == []


def test_piqa_is_compared_question_by_question(benchmarks):
    dense = {"nll": {"tasks": [1.0, 2.0]}, "piqa": {"answers": {"acc": "1101"}}}
    row = {"nll": {"tasks": [1.5, 2.5]}, "piqa": {"answers": {"acc": "1000"}}}
    found = benchmarks.quality.compare(row, dense, set())["piqa"]
    assert found["acc_difference"] == -0.5
    assert found["acc_difference_stderr"] == pytest.approx(statistics.stdev([0, -1, 0, -1]) / 2)


def test_a_model_answers_piqa(benchmarks, folders, tiny_tokenizer, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install optimum-slicegpt[eval]")
    rows = [{"goal": f"w{i} w5", "sol1": f"w{i + 1}", "sol2": f"w{i + 2} w9"} for i in range(6)]
    (tmp_path / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "valid-labels.lst").write_text("0\n1\n" * 3)
    model = AutoModelForCausalLM.from_pretrained(folders / "dense")
    found = import_module("piqa").measure(model, tiny_tokenizer, tmp_path, limit=4)
    assert found["questions"] == len(found["answers"]["acc"]) == 4
    assert found["acc"] == found["answers"]["acc"].count("1") / 4


def test_prompts_are_answered_side_by_side(benchmarks, folders, results, tmp_path, tiny_tokenizer, monkeypatch):
    dense = tmp_path / "dense"
    AutoModelForCausalLM.from_pretrained(folders / "dense").save_pretrained(dense)
    tokenizer = benchmarks.prompts.AutoTokenizer.from_pretrained(folders / "dense")
    tokenizer.chat_template = "{% for message in messages %}w3 {{ message['content'] }} w4{% endfor %}"
    tokenizer.save_pretrained(dense)
    given = (f"--dense={dense}", "--name=tiny", "--new-tokens=3", "--dtype=float32")
    run(benchmarks.prompts, monkeypatch, *given, "--model", f"sliced={folders / 'sliced'}")
    found = json.loads((results / "prompts.json").read_text())
    assert len(found["prompts"]) == 12 and [run["name"] for run in found["runs"]] == ["dense", "sliced"]
    assert all(len(run["answers"]) == 12 for run in found["runs"])
    lines = benchmarks.quality_tables.prompts().splitlines()
    assert lines[0] == "|  | prompt | dense | sliced |" and "What is the capital of France?" in lines[2]
    assert lines[-1].startswith("tiny, greedy; at most 3 tokens; float32; commit ")


def test_cells_show_texts_as_they_are(benchmarks):
    assert benchmarks.formatting.escape("a|b <i>\n`*x_y*`") == ("a&#124;b &lt;i&gt;<br>&#96;&#42;x&#95;y&#42;&#96;")


def test_tables_hold_what_was_measured(benchmarks, measured):
    measured("--reduction", 0.2, "--method", "default", "paper", "--nsamples=32")
    found, _ = measured("--label=older", "--nsamples=32")
    dense, default, paper = found["runs"]
    page = "<!-- not run: has no end -->\n<!-- table: readme -->\nold\n<!-- end --> <!-- table: sizes --><!-- end -->"
    page = benchmarks.tables.fill(
        page + " <!-- table: quality --><!-- end --> <!-- table: piqa -->as it is<!-- end -->"
    )
    readme, sizes, quality, piqa = (part.split("-->")[1] for part in page.split("<!-- table: ")[1:])
    assert "old" not in readme and piqa == "as it is<!-- end "
    lines = readme.strip().splitlines()
    assert lines[2].startswith(f"| SmolLM2-135M-Instruct | {dense['parameters'] / 1e6:.1f} M |")
    assert f"| {default['mean']:.3f} ± {default['mean_stderr']:.3f} | {default['worst']:.3f} |" in lines[3]
    assert lines[4].startswith("| paper, 20% smaller |") and "Slicing" not in lines[0]
    assert f"{default['parameters'] / dense['parameters'] - 1:+.1%}" in sizes and "paper" not in sizes
    assert "| default, older |" in quality and "| paper |" in quality
    assert "2 chunks of 16 tokens of each kind" in quality
