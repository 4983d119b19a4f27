"""`optimum-cli slicegpt eval`."""

import json
import re
from dataclasses import asdict

import pytest
import tiny
import torch
from command_line import fails, run
from transformers import AutoModelForCausalLM

from optimum_slicegpt import evaluate_perplexity, load_batches
from optimum_slicegpt.commands import loading
from optimum_slicegpt.evaluation.perplexity import evaluate_losses


def test_eval_measures_the_first_sequences(cli_files, tiny_tokenizer, capsys):
    dense, text = cli_files / "dense", cli_files / "test.txt"
    run("eval", "--model", dense, "--dataset", text, "--nsamples", 3, "--seqlen", 1000, "--device", "cpu")
    names, row = capsys.readouterr().out.splitlines()
    # sequences no longer than the model's 64 positions
    batches = load_batches(text, tiny_tokenizer, nsamples=3, seqlen=64, seed=None)
    expected = evaluate_perplexity(AutoModelForCausalLM.from_pretrained(dense), batches)
    assert names.split() == ["dataset", "model", "tokens", "perplexity", "nll"]
    figures = f"189  {expected.perplexity:.2f}  {expected.nll:.4f} ± {expected.stderr:.4f}"
    assert row.split() == ["test.txt", str(dense), *figures.split()]


def test_eval_beside_a_baseline_on_several_datasets(cli_files, tiny_tokenizer, tmp_path, capsys):
    dense, sliced, texts = cli_files / "dense", tmp_path / "sliced", [cli_files / "test.txt", cli_files / "more.txt"]
    data = ("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16)
    run("compress", "--model", dense, "--output", sliced, *data, "--json")
    capsys.readouterr()
    both = ("--dataset", texts[0], "--dataset", texts[1], texts[0], "--nsamples", 5, "--seqlen", 16)
    command = ("eval", "--model", sliced, "--baseline", dense, *both, "--batch-size", 3)
    run(*command, "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["baseline"]) == (str(sliced), str(dense))
    assert [result["dataset"] for result in report["results"]] == ["test.txt", "more.txt, test.txt"]
    batches = load_batches(texts[0], tiny_tokenizer, nsamples=5, seqlen=16, seed=None)
    own, other = (evaluate_losses(AutoModelForCausalLM.from_pretrained(name), batches) for name in (sliced, dense))
    for found, expected in (
        (report["results"][0], own.perplexity()),
        (report["results"][0]["baseline"], other.perplexity()),
        (report["results"][0]["difference"], own.difference(other)),
    ):
        assert {key: found[key] for key in asdict(expected)} == pytest.approx(asdict(expected), rel=1e-5)

    run(*command)
    names, *rows, note = capsys.readouterr().out.splitlines()
    assert names.split() == ["dataset", "model", "tokens", "perplexity", "nll", "difference"]
    assert [str(dense) in row for row in rows] == [True, False, True, False]
    assert re.search(r"[+-]\d\.\d{4} ± \d\.\d{4}$", rows[1]) and rows[0].endswith("-")
    assert "Its standard error is paired" in note


def test_eval_with_a_stride(cli_files, tiny_tokenizer, capsys):
    dense, text = cli_files / "dense", cli_files / "test.txt"
    options = ("--nsamples", 3, "--seqlen", 20, "--stride", 6, "--json")
    run("eval", "--model", dense, "--dataset", text, *options)
    report = json.loads(capsys.readouterr().out)
    batches = load_batches(text, tiny_tokenizer, nsamples=1, seqlen=60, seed=None)
    expected = evaluate_perplexity(AutoModelForCausalLM.from_pretrained(dense), batches, seqlen=20, stride=6)
    assert expected.ntokens == 59
    assert report["results"] == [{"dataset": "test.txt"} | asdict(expected)]
    assert (report["seqlen"], report["stride"]) == (20, 6)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--dataset", "python-docs", "--split", "dev"], "Unknown split='dev'"),
        (["--dataset", "python-docs", "c4"], "['python-docs', 'c4'] among 2 texts: names of datasets"),
        (["--stride", 2048], "stride=2048 must be at least 1 and less than seqlen=64"),
        (["--device", "cuda:99"], "device='cuda:99' is not available here"),
        (["--baseline", "no/such/model"], "no/such/model"),
    ],
)
def test_errors_of_eval(cli_files, capsys, monkeypatch, more, message):
    monkeypatch.setattr(
        loading.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("weights are read")
    )
    assert message in fails(capsys, "eval", "--model", cli_files / "dense", *more)


def test_a_baseline_of_another_vocabulary_is_refused(cli_files, tmp_path, capsys):
    tiny.build("llama", torch.float32, vocab_size=90).save_pretrained(tmp_path)
    message = fails(capsys, "eval", "--model", cli_files / "dense", "--baseline", tmp_path)
    assert "--baseline has a vocabulary of 90 tokens and --model one of 98. Only models that read the same" in message
