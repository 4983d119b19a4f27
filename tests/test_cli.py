import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import tiny
import torch
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.register import register_slicegpt
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma2Config, PreTrainedModel

from optimum_slicegpt import SliceGPTConfig, cli, configuration, evaluate_perplexity, load_batches
from optimum_slicegpt.evaluation import Perplexity
from optimum_slicegpt.modeling.modeling_sliced import SlicedModelMixin


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """A dense checkpoint, `dense`, and texts to calibrate and to measure on."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.build("llama", torch.float32, vocab_size=98).save_pretrained(folder / "dense")
    tiny_tokenizer.save_pretrained(folder / "dense")
    for name, seed in {"train.txt": 1, "more.txt": 2, "test.txt": 3}.items():
        words = (f"w{token}" for token in tiny.tokens(1, 400, seed=seed)[0].tolist())
        (folder / name).write_text(" ".join(words))
    return folder


@pytest.fixture
def arguments(folder, tmp_path):
    """Of a quick run of `compress`."""
    return [
        *("compress", "--model", folder / "dense", "--output", tmp_path / "sliced"),
        *("--dataset", folder / "train.txt", "--nsamples", 8, "--seqlen", 16),
    ]


def parse(*arguments):
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    register_slicegpt.SliceGPTCommand(root.subparsers)
    return root.parser.parse_args(["slicegpt", *map(str, arguments)])


def run(*arguments):
    args = parse(*arguments)
    args.func(args).run()


def fails(capsys, *arguments):
    """The one line that a failing command prints."""
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    captured = capsys.readouterr()
    assert exit.value.code == 1
    assert captured.out == ""
    *_, line = captured.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in captured.err
    return line


def optimum_cli(*arguments):
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "slicegpt", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


# The commands


PAPER = ("--rotation", "per_block", "--no-refit")


def test_compress_and_eval_end_to_end(folder, arguments, tmp_path):
    figures = ("--eval-dataset", folder / "test.txt", "--eval-nsamples", 6, "--eval-seqlen", 32)
    report = json.loads(optimum_cli(*arguments, *PAPER, "--sparsity", 0.5, *figures, "--json"))
    sliced = tmp_path / "sliced"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sliced"]

    model = AutoModelForCausalLM.from_pretrained(sliced)
    assert model.config.model_type == "sliced_llama"
    assert report["widths"] == model.config.widths == [24, 24, 24, 24, 48]
    assert report["slicegpt"] == model.config.slicegpt
    assert report["slicegpt"]["parameters_after"] == model.num_parameters()
    dense = AutoModelForCausalLM.from_pretrained(folder / "dense")
    assert report["slicegpt"]["parameters_before"] == dense.num_parameters()
    assert report["bytes_in_memory_before"] == 4 * dense.num_parameters()
    assert report["bytes_on_disk_after"] == (sliced / "model.safetensors").stat().st_size
    assert AutoTokenizer.from_pretrained(sliced)("w5").input_ids == [97, 5]

    measured = json.loads(
        optimum_cli(
            *("eval", "--model", sliced, "--dataset", folder / "test.txt", "--nsamples", 6, "--seqlen", 32, "--json")
        )
    )
    assert measured == {"model": str(sliced), "dataset": "test.txt", "split": "test"} | report["perplexity_after"]
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


def test_compress_prints_perplexity_where_asked(folder, arguments, capsys):
    run(*arguments, "--sparsity", 0.8, "--eval-dataset", folder / "test.txt", "--eval-seqlen", 16)
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


def test_eval_measures_the_first_sequences(folder, tiny_tokenizer, capsys):
    text = folder / "test.txt"
    run("eval", "--model", folder / "dense", "--dataset", text, "--nsamples", 3, "--seqlen", 1000, "--device", "cpu")
    dataset, perplexity, nll, tokens = capsys.readouterr().out.splitlines()
    # sequences no longer than the model's 64 positions
    batches = load_batches(text, tiny_tokenizer, nsamples=3, seqlen=64, seed=None)
    expected = evaluate_perplexity(AutoModelForCausalLM.from_pretrained(folder / "dense"), batches)
    assert dataset.split() == ["dataset", "test.txt"]
    assert perplexity.split() == ["perplexity", f"{expected.perplexity:.2f}"]
    assert nll.split() == ["nll", f"{expected.nll:.4f}", "±", f"{expected.stderr:.4f}"]
    assert tokens.split() == ["tokens", "189"]


def test_json_has_no_nan(folder, capsys):
    run("eval", "--model", folder / "dense", "--dataset", folder / "test.txt", "--nsamples", 1, "--json")
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["stderr"] is None  # there is none of one sequence
    assert found["perplexity"] > 1


def test_a_model_ruined_by_slicing_is_reported(folder, arguments, monkeypatch, capsys):
    ruined = Perplexity(perplexity=float("inf"), nll=1000.0, stderr=1.0, ntokens=7)
    monkeypatch.setattr(cli, "evaluate_perplexity", lambda *args, **kwargs: ruined)
    run(*arguments, "--eval-dataset", folder / "test.txt")
    assert re.search(r"^perplexity on test.txt +inf +inf +\+nan%$", capsys.readouterr().out, re.MULTILINE)


def test_without_a_subcommand_help_is_printed(capsys):
    run()
    printed = capsys.readouterr().out
    assert "compress" in printed
    assert "eval" in printed


# Flags


FIELDS = {
    "sparsity": ([0.3], 0.3),
    "widths": ([32, 32, 32, 32, 32], [32, 32, 32, 32, 32]),
    "parameter_reduction": ([0.25], 0.25),
    "mlp_sparsity": ([0.3], 0.3),
    "rotation": (["shared"], "shared"),
    "refit": ([], True),
    "metric": (["fisher"], "fisher"),
    "round_to": ([4], 4),
    "slice_head": ([], True),
    "embeddings": (["sliced"], "sliced"),
    "orientation": (["random"], "random"),
    "dataset": (["python-docs"], "python-docs"),
    "text_column": (["question"], "question"),
    "nsamples": ([3], 3),
    "seqlen": ([16], 16),
    "batch_size": ([2], 2),
    "seed": ([7], 7),
    "tokenizer": (["dense"], "dense"),
    "device": (["cpu"], "cpu"),
    "dtype": (["float64"], "float64"),
    "offload_activations": ([], True),
}
"""Field of `SliceGPTConfig` -> values on the command line, value of the field."""


@pytest.fixture
def config_of(folder, tmp_path, monkeypatch):
    """The `SliceGPTConfig` that a command line leads to."""
    configs = []

    def quantizer(config):
        configs.append(config)
        raise ValueError("seen")

    monkeypatch.setattr(cli, "SliceGPTQuantizer", quantizer)
    monkeypatch.chdir(folder)

    def config_of(*arguments):
        with pytest.raises(SystemExit):
            run("compress", "--model", "dense", "--output", tmp_path / "sliced", *arguments)
        return configs.pop()

    return config_of


@pytest.mark.parametrize("name", [field.name for field in fields(SliceGPTConfig) if field.name != "quant_method"])
def test_every_field_has_a_flag(config_of, name):
    values, expected = FIELDS[name]
    config = config_of("--" + name.replace("_", "-"), *values)
    assert config.to_dict() == SliceGPTConfig(**{name: expected}).to_dict()


def test_fields_without_a_flag_keep_their_defaults(config_of):
    assert config_of().to_dict() == SliceGPTConfig().to_dict()


def test_no_refit(config_of):
    assert config_of("--no-refit").refit is False


def test_no_seed(config_of):
    assert config_of("--seed", "none").seed is None


def test_several_datasets_are_paths(config_of):
    assert config_of("--dataset", "train.txt", "more.txt").dataset == [Path("train.txt"), Path("more.txt")]


def test_help_and_choices_agree_with_the_configuration():
    printed = re.sub(r"\s+", " ", help_of("compress"))
    for field in fields(SliceGPTConfig):
        if field.name != "quant_method" and type(field.default) in (int, str):
            flag = "--" + field.name.replace("_", "-")
            assert re.search(rf" {flag} [^-].*?\(default: {field.default}[,)]", printed), flag
    assert f"(default: {configuration.DEFAULT_REDUCTION})" in printed
    assert register_slicegpt.DTYPES == configuration.DTYPES
    assert register_slicegpt.ORIENTATIONS == configuration.ORIENTATIONS
    assert register_slicegpt.ROTATIONS == configuration.ROTATIONS
    assert register_slicegpt.METRICS == configuration.METRICS
    assert register_slicegpt.EMBEDDINGS == configuration.EMBEDDINGS


def test_parsers_import_nothing_heavy():
    code = (
        "import sys; from optimum.commands.register import register_slicegpt; "
        "print({'torch', 'transformers', 'datasets', 'optimum_slicegpt'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def help_of(command):
    root = RootOptimumCLICommand("optimum-cli", usage="optimum-cli")
    slicegpt = register_slicegpt.SliceGPTCommand(root.subparsers)
    return next(sub for sub in slicegpt.registered_subcommands if sub.COMMAND.name == command).parser.format_help()


# Errors


def test_an_output_that_is_not_empty_is_refused_untouched(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "load_model", lambda *args: pytest.fail("a model was loaded"))
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
    monkeypatch.setattr(cli, "load_model", lambda *args: pytest.fail("a model was loaded"))
    assert re.search(message, fails(capsys, *arguments, *more))
    assert list(tmp_path.iterdir()) == []


def test_families_are_refused_before_a_model_is_loaded(arguments, folder, tmp_path, capsys):
    Gemma2Config().save_pretrained(tmp_path / "gemma2")  # no weights at all
    options = ("--model", tmp_path / "gemma2", "--tokenizer", folder / "dense")
    assert "Cannot slice model_type='gemma2': its post-norms" in fails(capsys, *arguments, *options)


@pytest.mark.parametrize(
    "dataset, message", [(["missing.txt"], "missing.txt"), (["wikitext2", "ptb"], "Unknown extension of 'wikitext2'")]
)
def test_datasets_that_cannot_be_read(arguments, tmp_path, capsys, dataset, message):
    assert message in fails(capsys, *arguments, "--dataset", *dataset)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_eval(folder, capsys):
    assert "Unknown split='dev'" in fails(
        capsys, "eval", "--model", folder / "dense", "--dataset", "python-docs", "--split", "dev"
    )


def test_wrong_usage_exits_with_2(capsys):
    for arguments in (["compress"], ["compress", "--model", "m", "--output", "o", "--seed", "some"]):
        with pytest.raises(SystemExit) as exit:
            run(*arguments)
        assert exit.value.code == 2


def test_an_interrupted_run_leaves_nothing_behind(arguments, tmp_path, capsys, monkeypatch):
    def save_pretrained(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{}")
        assert len(list(tmp_path.rglob("config.json"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)
    with pytest.raises(SystemExit) as exit:
        run(*arguments, "--output", tmp_path / "no" / "such" / "parents")
    assert exit.value.code == 130
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_bugs_keep_their_traceback(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []
