"""`optimum-cli slicegpt recover`, alone and in two processes."""

import json
import re
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from command_line import fails, help_of, optimum_cli, run, run_together
from peft import AutoPeftModelForCausalLM
from tiny import calibration, paper
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt import RecoveryConfig, SliceGPTConfig, recovery
from optimum_slicegpt.commands import recover
from optimum_slicegpt.recovery import configuration
from optimum_slicegpt.recovery.trainer import RecoveryTrainer
from optimum_slicegpt.storage.files import RECORD, is_result


FIELDS = {
    "dataset": (["python-docs"], "python-docs"),
    "text_column": (["question"], "question"),
    "own_tokens": ([64], 64),
    "mask_prompts": ([], True),
    "nsamples": ([3], 3),
    "seqlen": ([16], 16),
    "held_out": ([7], 7),
    "full": ([], True),
    "lora_rank": ([4], 4),
    "lora_alpha": ([8], 8),
    "lora_dropout": ([0.1], 0.1),
    "shortcuts": ([], True),
    "keep_adapter": ([], True),
    "learning_rate": (["1e-4"], 1e-4),
    "epochs": ([2], 2),
    "max_steps": ([9], 9),
    "batch_size": ([2], 2),
    "gradient_accumulation": ([1], 1),
    "eval_steps": ([5], 5),
    "patience": ([1], 1),
    "distill": ([], True),
    "temperature": ([2], 2),
    "distill_weight": ([0.9], 0.9),
    "teacher_dtype": (["float32"], "float32"),
    "teacher_device": (["cpu"], "cpu"),
    "bf16": ([], True),
    "use_cpu": ([], True),
    "seed": ([7], 7),
}
"""Field of `RecoveryConfig` -> values on the command line, value of the field."""


@pytest.fixture(scope="module")
def files(cli_files):
    """Puts sliced checkpoints beside the dense one: one of a sliced class, one of a stock class."""
    configs = {"sliced": paper, "stock": SliceGPTConfig}
    for name, config in configs.items():
        model = AutoModelForCausalLM.from_pretrained(cli_files / "dense")
        model.compress(config(sparsity=0.3, dataset=calibration())).save_pretrained(cli_files / name)
        AutoTokenizer.from_pretrained(cli_files / "dense").save_pretrained(cli_files / name)
    return cli_files


@pytest.fixture
def arguments(files, tmp_path):
    """Returns the arguments of a quick run without a teacher."""
    return [
        *("recover", "--model", files / "sliced", "--output", tmp_path / "recovered"),
        *("--dataset", files / "train.txt", "--seqlen", 16, "--held-out", 3, "--max-steps", 4, "--eval-steps", 2),
        *("--batch-size", 2, "--gradient-accumulation", 2, "--learning-rate", "1e-2", "--no-bf16", "--use-cpu"),
        "--no-distill",
    ]


# Alone


ARCHITECTURES = [("sliced", "SlicedLlamaForCausalLM"), ("stock", "LlamaForCausalLM")]


@pytest.mark.parametrize("name, architecture", ARCHITECTURES)
def test_recover_end_to_end(files, arguments, tmp_path, name, architecture):
    report = json.loads(optimum_cli(*arguments, "--model", files / name, "--json"))
    folder = tmp_path / "recovered"
    assert [path.name for path in tmp_path.iterdir()] == ["recovered"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == architecture
    assert report == {
        "model": str(files / name),
        "output": str(folder),
        "recovery": model.config.slicegpt["recovery"],
    }
    assert (report["recovery"]["steps"], report["recovery"]["source"]) == (4, "train.txt")
    assert AutoTokenizer.from_pretrained(folder)("w5").input_ids == [97, 5]
    assert "It was fine-tuned after that: perplexity on held-out" in (folder / "README.md").read_text()


def test_what_is_printed(arguments, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run(*arguments)
    captured = capsys.readouterr()
    assert "FutureWarning" not in captured.err and "mtime" not in captured.err
    printed = captured.out.splitlines()
    rows = (
        "trained on +22 sequences of train.txt",
        "held out +3 other sequences, to measure on",
        r"steps +4, the best is \d",
        r"held-out loss on train.txt +\d\.\d{4} before, \d\.\d{4} after",
        r"scale of the adapter +[\d.]+",
        r"held-out perplexity before +\d+\.\d\d",
    )
    rows += (r"held-out perplexity after +\d+\.\d\d", r"seconds +[\d.]+", "Saved in .*recovered")
    assert len(printed) == len(rows)
    assert all(re.fullmatch(row, line) for row, line in zip(rows, printed, strict=True))


@pytest.mark.parametrize("name, architecture", ARCHITECTURES)
def test_the_adapter_is_kept_where_asked(files, arguments, tmp_path, name, architecture):
    run(*arguments, "--model", files / name, "--keep-adapter", "--json")
    folder = tmp_path / "recovered"
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert type(model.get_base_model()).__name__ == architecture
    assert AutoTokenizer.from_pretrained(folder)("w5").input_ids == [97, 5]
    assert json.loads((folder / RECORD).read_text())["recovery"]["steps"] == 4 and is_result(folder)


def test_a_teacher_is_learned_from(files, arguments, tmp_path, capsys):
    run(*arguments, "--distill", "--teacher", files / "dense", "--nsamples", 40)
    record = AutoConfig.from_pretrained(tmp_path / "recovered").slicegpt["recovery"]
    assert (record["teacher"], record["source"]) == ("dense", "train.txt, self")
    rows = dict(re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines() if "  " in line)
    for kind, before in record["held_out_losses"]["before"].items():
        after = record["held_out_losses"]["after"][kind]
        assert rows[f"held-out loss on {kind}"] == f"{before:.4f} before, {after:.4f} after"


def test_interrupted_and_resumed(arguments, tmp_path, monkeypatch, capsys):
    """No file is written by half, and the same command resumes."""
    train = RecoveryTrainer.training_step

    def stops(self, *args):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return train(self, *args)

    run(*arguments)
    (tmp_path / "recovered").rename(tmp_path / "undisturbed")
    arguments += ["--checkpoints", tmp_path / "checkpoints"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(RecoveryTrainer, "training_step", stops)
        run(*arguments)
    assert exit.value.code == 130 and capsys.readouterr().err.endswith("interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "undisturbed"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-2", "recovery.json"]

    run(*arguments, "--resume")
    recovered, undisturbed = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("recovered", "undisturbed")
    )
    assert all(torch.equal(recovered[name], undisturbed[name]) for name in undisturbed)


def test_errors_are_told_in_a_line(files, arguments, tmp_path, capsys):
    assert "names none on the Hub: it was sliced from 'dense'. Give teacher= (--teacher)" in fails(
        capsys, *arguments, "--distill"
    )
    message = "resume=True without checkpoints; give the folder that holds those of the earlier run."
    assert fails(capsys, *arguments, "--resume").endswith(message)
    assert "device='cuda:99' is not available here" in fails(capsys, *arguments, "--teacher-device", "cuda:99")
    assert "This LlamaForCausalLM is not sliced: its configuration has no 'slicegpt'" in fails(
        capsys, *arguments, "--model", files / "dense"
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "recovered").mkdir()
    (tmp_path / "recovered" / "notes").touch()
    assert "is there already; give a place that is absent or empty" in fails(capsys, *arguments)


# Behind slicing, by one command


def test_compress_and_recover_in_a_row(files, tmp_path, monkeypatch):
    text = str(files / "train.txt")
    sizes = {"nsamples": 40, "seqlen": 16, "held_out": 4, "max_steps": 4, "eval_steps": 2, "bf16": False}
    monkeypatch.setattr(recovery, "RecoveryConfig", lambda: RecoveryConfig(dataset=text, use_cpu=True, **sizes))
    data = ("--dataset", text, "--nsamples", 8, "--seqlen", 16, "--parameter-reduction", 0.1)
    run("compress", "--model", files / "dense", "--output", tmp_path / "both", *data, "--recover", "--json")
    record = AutoModelForCausalLM.from_pretrained(tmp_path / "both").config.slicegpt["recovery"]
    assert (record["teacher"], record["source"], record["steps"]) == ("dense", "train.txt, self", 4)
    assert "It was fine-tuned after that" in (tmp_path / "both" / "README.md").read_text()


# Flags


@pytest.fixture
def config_of(files, tmp_path, monkeypatch):
    """Returns a function that makes the `RecoveryConfig` of a command line."""
    configs = []

    def recovers(model, tokenizer, config, **kwargs):
        configs.append(config)
        raise ValueError("seen")

    monkeypatch.setattr(recover, "recover", recovers)

    def config_of(*arguments):
        with pytest.raises(SystemExit):
            run("recover", "--model", files / "sliced", "--output", tmp_path / "recovered", *arguments)
        return configs.pop()

    return config_of


@pytest.mark.parametrize("name", [field.name for field in fields(RecoveryConfig) if field.name != "adapt_teacher"])
def test_every_field_has_a_flag(config_of, name):
    values, expected = FIELDS[name]
    assert config_of("--" + name.replace("_", "-"), *values) == RecoveryConfig(**{name: expected})


def test_a_teacher_that_learns_is_one_that_is_asked(config_of):
    assert config_of("--adapt-teacher") == RecoveryConfig(adapt_teacher=True)


def test_fields_without_a_flag_keep_their_defaults(config_of):
    assert config_of() == RecoveryConfig()


def test_values_of_several_kinds(config_of, cli_files, monkeypatch):
    monkeypatch.chdir(cli_files)
    config = config_of("--held-out", 0.2, "--eval-steps", 0.5, "--patience", "none", "--no-bf16", "--no-mask-prompts")
    assert (config.held_out, config.eval_steps, config.patience) == (0.2, 0.5, None)
    assert not config.bf16 and not config.mask_prompts and config.distill
    assert not config_of("--no-distill").distill
    assert config_of("--dataset", "train.txt", "more.txt").dataset == [Path("train.txt"), Path("more.txt")]


def test_help_agrees_with_the_configuration():
    printed = re.sub(r"\s+", " ", help_of("recover"))
    for field in fields(RecoveryConfig):
        if type(field.default) in (int, float, str):
            flag = "--" + field.name.replace("_", "-")
            assert re.search(rf" {flag} [^-].*?\(default: {field.default}[,)]", printed), flag
    assert "(default: 1e-3, and 2e-5 with --full)" in printed
    assert (configuration.LORA_RATE, configuration.FULL_RATE) == (1e-3, 2e-5)


# In two processes


def losses(folder):
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"))
    log = json.loads(states[-1].read_text())["log_history"]
    return [[entry[key] for entry in log if key in entry] for key in ("loss", "eval_held_out")]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo is not available")
@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "distilled"])
def test_two_processes_are_one_with_twice_the_batch(teacher, files, arguments, tmp_path):
    if teacher:
        arguments += ["--distill", "--own-tokens", 200, "--teacher", files / "dense", "--learning-rate", "3e-4"]
    run(*arguments, "--checkpoints", tmp_path / "one")
    one = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered")
    (tmp_path / "recovered").rename(tmp_path / "model-of-one")

    first, second = run_together(*arguments, "--batch-size", 1, "--checkpoints", tmp_path / "two", "--json")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == ""
    report = json.loads(first.stdout)
    assert report["recovery"]["processes"] == 2
    names = ["model-of-one", "one", "recovered", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names

    for curve, expected in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert len(curve) > 2 and curve == pytest.approx(expected, rel=1e-5)
    assert losses(tmp_path / "one")[1][-1] < losses(tmp_path / "one")[1][0]
    two = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered").state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
