import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import fails, optimum_cli, run
from tiny import build, tokens
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaForCausalLM,
    PreTrainedModel,
)

from optimum_slicegpt.commands import compress, loading
from optimum_slicegpt.evaluation.perplexity import Perplexity
from optimum_slicegpt.modeling.modeling_sliced import SlicedModelMixin


@pytest.fixture
def arguments(cli_files, tmp_path):
    """Returns the arguments of a quick run of `compress`."""
    return [
        *("compress", "--model", cli_files / "dense", "--output", tmp_path / "sliced"),
        *("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16),
    ]


# The commands


PAPER = ("--rotation", "per_block", "--no-refit")
TIED = {"tie_word_embeddings": True}


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


def test_compress_prints_perplexity_where_asked(cli_files, arguments, capsys):
    run(*arguments, "--sparsity", 0.8, "--eval-dataset", cli_files / "test.txt", "--eval-seqlen", 16)
    printed = capsys.readouterr().out
    assert re.search(r"^perplexity on test.txt +[\d.]+ +[\d.]+ +[+-][\d.]+%$", printed, re.MULTILINE)
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


# Errors


def test_an_output_that_is_not_empty_is_refused_untouched(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress, "load_model", lambda *args: pytest.fail("a model was loaded"))
    kept = tmp_path / "sliced" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert "is there already; give a folder that is absent or empty" in fails(capsys, *arguments)
    assert kept.read_text() == "mine"
    assert list(tmp_path.rglob("*")) == [kept.parent, kept]


def test_an_empty_output_folder_is_filled(arguments, tmp_path):
    (tmp_path / "sliced").mkdir()
    run(*arguments, "--json")
    assert (tmp_path / "sliced" / "config.json").is_file()


def test_a_file_as_output_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "sliced").write_text("mine")
    assert "is there already" in fails(capsys, *arguments)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--sparsity", 1.5], r"sparsity=1.5; give the share"),
        (["--sparsity", 0.3, "--widths", 8], r"Both sparsity=0.3 and widths"),
        (["--widths", 8, 8], r"widths has 2 entries; this model has 5 sites"),
        (["--sparsity", 0.3, "--parameter-reduction", 0.2], r"Both parameter_reduction=0.2 and sparsity are given"),
        (["--parameter-reduction", 0.999], r"parameter_reduction=0.999 is out of reach"),
        (["--mlp-sparsity", 0.9, "--round-neurons-to", 8], r"mlp_sparsity=0.9 leaves no neuron of 40"),
        (["--seed", -1], r"seed=-1"),
        (["--device", "cuda:99"], r"device='cuda:99' is not available here"),
        (
            ["--tokenizer", "no/such/tokenizer"],
            r"No tokenizer could be loaded from 'no/such/tokenizer'; give .*--token",
        ),
        (["--model", "no/such/model"], r"no/such/model"),
        (["--eval-dataset", "wikitext3"], r"Unknown dataset 'wikitext3'. Did you mean 'wikitext2'"),
    ],
)
def test_what_can_be_refused_is_refused_before_a_model_is_loaded(
    arguments, tmp_path, capsys, monkeypatch, more, message
):
    monkeypatch.setattr(compress, "load_model", lambda *args: pytest.fail("a model was loaded"))
    assert re.search(message, fails(capsys, *arguments, *more))
    assert list(tmp_path.iterdir()) == []


BIASED = {"attention_bias": True}
"""With which a Llama of a width that its heads do not divide cannot be a Mistral."""


@pytest.mark.parametrize("stream", [[], ["--stream"]])
@pytest.mark.parametrize(
    "sizes, more, message",
    [
        (
            {},
            ["--rotation", "per_block"],
            r" with rotation='per_block': no stock class has linear layers .*; leave either",
        ),
        ({}, ["--schedule", "energy"], r" with schedule='energy': no stock class has MLPs that differ in size; leave"),
        (TIED, ["--embeddings", "tied"], r" with embeddings='tied': no stock class has projections .*; leave"),
        (
            TIED,
            ["--orientation", "random"],
            r" with a tied head: orientation='random' turns .*; use orientation='pca'",
        ),
        (BIASED, ["--widths", *[30] * 5], r": no class .* holds a llama model of hidden size 30; .* fit: 28, 32\."),
        (BIASED, ["--widths", *[47] * 5], r": no class .* holds a llama model of hidden size 47; .* fit: 48, 44\."),
    ],
)
def test_what_no_stock_class_can_be_is_refused_before_a_model_is_loaded(
    arguments, cli_files, tmp_path, capsys, monkeypatch, stream, sizes, more, message
):
    monkeypatch.setattr(compress, "load_model", lambda *args: pytest.fail("a model was loaded"))
    folder = tmp_path / "dense"
    build("llama", torch.float32, vocab_size=98, **sizes).save_pretrained(folder)
    options = ("--model", folder, "--tokenizer", cli_files / "dense", "--architecture", "stock", *stream, *more)
    assert re.search("architecture='stock'" + message, fails(capsys, *arguments, *options))
    assert list(tmp_path.iterdir()) == [folder]


def test_families_are_refused_before_a_model_is_loaded(arguments, cli_files, tmp_path, capsys):
    Gemma2Config().save_pretrained(tmp_path / "gemma2")  # no weights at all
    options = ("--model", tmp_path / "gemma2", "--tokenizer", cli_files / "dense")
    assert "Cannot slice model_type='gemma2': its post-norms" in fails(capsys, *arguments, *options)


@pytest.mark.parametrize(
    "dataset, message",
    [
        (["missing.txt"], "missing.txt"),
        (["one.csv", "two.csv"], "Unknown extension of 'one.csv'"),
        (["python-docs", "two.csv"], "Unknown extension of 'two.csv'"),
    ],
)
def test_datasets_that_cannot_be_read(arguments, tmp_path, capsys, dataset, message):
    assert message in fails(capsys, *arguments, "--dataset", *dataset)
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_exits_with_2(capsys):
    for arguments in (["compress"], ["compress", "--model", "m", "--output", "o", "--seed", "some"]):
        with pytest.raises(SystemExit) as exit:
            run(*arguments)
        assert exit.value.code == 2


def test_an_interrupted_run_leaves_nothing_behind(arguments, tmp_path, capsys, monkeypatch):
    def save_pretrained(self, cli_files, **kwargs):
        Path(cli_files).mkdir()
        (Path(cli_files) / "config.json").write_text("{}")
        assert len(list(tmp_path.rglob("config.json"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)
    with pytest.raises(SystemExit) as exit:
        run(*arguments, "--output", tmp_path / "no" / "such" / "parents")
    assert exit.value.code == 130
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_bugs_keep_their_traceback(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []
