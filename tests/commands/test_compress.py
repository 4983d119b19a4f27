"""`optimum-cli slicegpt compress`: what it makes, prints and publishes."""

import json
import re
import subprocess
import sys

import pytest
import torch
from command_line import optimum_cli, run
from huggingface_hub import HfApi
from tiny import build, tokens
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from optimum_slicegpt.commands import loading
from optimum_slicegpt.evaluation.perplexity import Perplexity
from optimum_slicegpt.modeling.modeling_sliced import SlicedModelMixin


PAPER = ("--rotation", "per_block", "--no-refit")


def test_compress_and_eval_end_to_end(cli_files, arguments, tmp_path):
    figures = ("--eval-dataset", cli_files / "test.txt", "--eval-nsamples", 6, "--eval-seqlen", 32)
    report = json.loads(optimum_cli(*arguments, *PAPER, "--sparsity", 0.5, *figures, "--json"))
    sliced = tmp_path / "sliced"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sliced"]

    model = AutoModelForCausalLM.from_pretrained(sliced)
    assert model.config.model_type == "sliced_llama"
    assert report["widths"] == model.config.widths == [24, 24, 24, 24, 48]
    assert report["slicegpt"] == model.config.slicegpt
    assert report["slicegpt"]["parameters_after"] == model.num_parameters()
    dense = AutoModelForCausalLM.from_pretrained(cli_files / "dense")
    assert report["slicegpt"]["parameters_before"] == dense.num_parameters()
    assert report["bytes_in_memory_before"] == 4 * dense.num_parameters()
    assert report["bytes_on_disk_after"] == (sliced / "model.safetensors").stat().st_size
    assert AutoTokenizer.from_pretrained(sliced)("w5").input_ids == [97, 5]
    assert "(slicegpt.png)" in (sliced / "README.md").read_text() and (sliced / "slicegpt.png").is_file()

    measured = json.loads(
        optimum_cli(
            *(
                "eval",
                "--model",
                sliced,
                "--dataset",
                cli_files / "test.txt",
                "--nsamples",
                6,
                "--seqlen",
                32,
                "--json",
            )
        )
    )
    assert measured["results"] == [{"dataset": "test.txt"} | report["perplexity_after"]]
    assert (measured["model"], measured["baseline"], measured["seqlen"]) == (str(sliced), None, 32)
    assert report["perplexity_on"] == "test.txt"
    assert report["perplexity_before"]["ntokens"] == 6 * 31
    assert report["perplexity_before"]["perplexity"] != report["perplexity_after"]["perplexity"]


def test_compress_prints_the_true_change(arguments, capsys):
    run(*arguments, *PAPER, "--widths", 48, 48, 48, 48, 48)
    printed = capsys.readouterr().out
    assert re.search(r"^ +before +after +change$", printed, re.MULTILINE)
    assert re.search(r"^parameters +[\d,]+ +[\d,]+ +\+[\d.]+%$", printed, re.MULTILINE)
    assert re.search(r"^size +[\d.]+ MB +[\d.]+ MB +\+[\d.]+%$", printed, re.MULTILINE)
    assert re.search(r"^The model grew: [\d.]+% more parameters.$", printed, re.MULTILINE)
    assert "forward 0." in printed
    assert "perplexity" not in printed


def test_compress_prints_perplexity_where_asked(cli_files, arguments, tmp_path, capsys):
    output = ("--output", tmp_path / "rel" / ".." / "sliced", "--overwrite")
    (tmp_path / "sliced").mkdir()
    (tmp_path / "sliced" / "config.json").write_text('{"slicegpt": {}}')  # It is replaced.
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"title": "w1", "words": (cli_files / "test.txt").read_text()}]))
    test = ("--eval-dataset", rows, "--text-column", "words", "--eval-seqlen", 16)
    run(*arguments, *output, "--sparsity", 0.8, *test)
    printed = capsys.readouterr().out
    assert f"Saved in {tmp_path / 'sliced'}\n" in printed
    assert "-100.0%" not in printed
    assert re.search(r"^perplexity on rows.json +[\d.]+ +[\d.]+ +[+-][\d.]+%$", printed, re.MULTILINE)
    assert re.search(r"^The model shrank: [\d.]+% fewer parameters.$", printed, re.MULTILINE)


def test_a_stock_result_end_to_end(cli_files, arguments, tmp_path):
    """It is compressed and read in processes of their own, the second without this package."""
    report = json.loads(optimum_cli(*arguments, "--sparsity", 0.5, "--mlp-sparsity", 0.4, "--json"))
    assert (report["architecture"], report["widths"]) == ("LlamaForCausalLM", [24] * 5)
    sliced = tmp_path / "sliced"
    model = AutoModelForCausalLM.from_pretrained(sliced)
    assert type(model) is LlamaForCausalLM and report["slicegpt"] == model.config.slicegpt
    assert (model.config.hidden_size, model.config.intermediate_size) == (24, 24)
    record = {key: report["slicegpt"][key] for key in ("architecture", "hidden_size", "all_neurons", "neurons")}
    assert record == {"architecture": "stock", "hidden_size": 48, "all_neurons": 40, "neurons": 24}
    assert report["slicegpt"]["parameters_after"] == model.num_parameters()
    assert report["bytes_on_disk_after"] == (sliced / "model.safetensors").stat().st_size
    assert not list(sliced.glob("*.py")) and "auto_map" not in (sliced / "config.json").read_text()
    torch.save(model(tokens()).logits.detach(), tmp_path / "logits.pt")
    torch.save(tokens(), tmp_path / "tokens.pt")
    subprocess.run([sys.executable, "-c", WITHOUT_THE_PACKAGE, tmp_path], check=True, timeout=120)

    data = ("--dataset", cli_files / "test.txt", "--nsamples", 6, "--seqlen", 32)
    measured = json.loads(optimum_cli("eval", "--model", sliced, "--baseline", cli_files / "dense", *data, "--json"))
    (result,) = measured["results"]
    assert result["perplexity"] > 1 and result["difference"]["nll"] != 0


WITHOUT_THE_PACKAGE = """
import sys, torch
sys.modules["optimum_slicegpt"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/sliced")
logits = model(torch.load(sys.argv[1] + "/tokens.pt")).logits
torch.testing.assert_close(logits, torch.load(sys.argv[1] + "/logits.pt"))
"""


@pytest.mark.parametrize(
    "more, line",
    [
        ((), "It is a LlamaForCausalLM and needs no code of this package."),
        (PAPER, "It is a SlicedLlamaForCausalLM and needs this package or trust_remote_code=True."),
    ],
)
def test_compress_says_what_the_result_is(arguments, capsys, more, line):
    run(*arguments, *more, "--sparsity", 0.25)
    assert line in capsys.readouterr().out.splitlines()


def test_compress_names_the_formats_whose_blocks_are_not_filled_any_more(arguments, cli_files, tmp_path, capsys):
    build("llama", torch.float32, vocab_size=98, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    sizes = ("--sparsity", 0.3, "--mlp-sparsity", 0.3, "--round-to", 4, "--round-neurons-to", 32)
    run(*arguments, "--model", tmp_path, "--tokenizer", cli_files / "dense", *sizes)
    lines = capsys.readouterr().out.splitlines()
    assert "llama.cpp, Q4_0 to Q8_0: not in blocks of 32: hidden size 64 -> 44" in lines
    assert "bitsandbytes, 4 bit: not in blocks of 64: hidden size 64 -> 44, neurons 128 -> 64" not in lines
    assert "bitsandbytes, 4 bit: not in blocks of 64: hidden size 64 -> 44" in lines
    assert "torchao, groups of 128: not in blocks of 128: neurons 128 -> 64" in lines
    assert not any("k-quants" in line for line in lines)  # the dense model did not fill them


def test_compress_loads_and_saves_in_the_dtype_asked_for(arguments, tmp_path):
    run(*arguments, "--model-dtype", "bfloat16", "--json")
    assert AutoConfig.from_pretrained(tmp_path / "sliced").dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["stock", "sliced"])
def test_compress_pushes_where_asked(arguments, monkeypatch, architecture):
    pushed = []
    monkeypatch.setattr(HfApi, "whoami", lambda api: {"auth": {"accessToken": {"role": "write"}}})
    for owner in (PreTrainedModel, SlicedModelMixin):
        monkeypatch.setattr(owner, "push_to_hub", lambda *args, **kwargs: pushed.append((args, kwargs)))
    run(*arguments, "--json", "--push-to-hub", "me/sliced", "--architecture", architecture)
    (((model, repo_id), kwargs),) = pushed
    name = {"stock": "LlamaForCausalLM", "sliced": "SlicedLlamaForCausalLM"}[architecture]
    assert (type(model).__name__, repo_id) == (name, "me/sliced")
    assert kwargs.keys() == {"tokenizer"} and kwargs["tokenizer"]("w5").input_ids == [97, 5]


def test_json_has_no_nan(cli_files, capsys):
    run("eval", "--model", cli_files / "dense", "--dataset", cli_files / "test.txt", "--nsamples", 1, "--json")
    (found,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["results"]
    assert found["stderr"] is None  # there is none of one sequence
    assert found["perplexity"] > 1


def test_a_model_ruined_by_slicing_is_reported(cli_files, arguments, monkeypatch, capsys):
    ruined = Perplexity(perplexity=float("inf"), nll=1000.0, stderr=1.0, ntokens=7)
    monkeypatch.setattr(loading, "evaluate_perplexity", lambda *args, **kwargs: ruined)
    run(*arguments, "--eval-dataset", cli_files / "test.txt")
    assert re.search(r"^perplexity on test.txt +inf +inf +\+nan%$", capsys.readouterr().out, re.MULTILINE)


def test_without_a_subcommand_help_is_printed(capsys):
    run()
    printed = capsys.readouterr().out
    assert "compress" in printed
    assert "eval" in printed
