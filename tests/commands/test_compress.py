import json
import re
from pathlib import Path

import pytest
import torch
from command_line import fails, optimum_cli, run
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma2Config, PreTrainedModel

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


def test_compress_says_whether_a_stock_class_can_hold_the_result(arguments, capsys):
    run(*arguments, "--sparsity", 0.25)
    assert "It fits a stock class: optimum-cli slicegpt export makes it one." in capsys.readouterr().out


def test_compress_says_what_keeps_a_stock_class_from_it(arguments, capsys):
    run(*arguments, *PAPER, "--sparsity", 0.25)
    assert "shortcuts=True, and no stock class has linear layers on its residual" in capsys.readouterr().out


def test_compress_loads_and_saves_in_the_dtype_asked_for(arguments, tmp_path):
    run(*arguments, "--model-dtype", "bfloat16", "--json")
    assert AutoConfig.from_pretrained(tmp_path / "sliced").dtype == torch.bfloat16


def test_compress_pushes_where_asked(arguments, monkeypatch):
    pushed = []
    monkeypatch.setattr(SlicedModelMixin, "push_to_hub", lambda *args, **kwargs: pushed.append((args, kwargs)))
    run(*arguments, "--json", "--push-to-hub", "me/sliced")
    (((model, repo_id), kwargs),) = pushed
    assert (type(model).__name__, repo_id) == ("SlicedLlamaForCausalLM", "me/sliced")
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
        (["--parameter-reduction", 0.99], r"parameter_reduction=0.99 is out of reach"),
        (["--mlp-sparsity", 0.9], r"mlp_sparsity=0.9 leaves no neuron of 40"),
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
