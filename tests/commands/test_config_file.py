"""`compress.yaml`: what a run was asked for, from which it can be repeated."""

import pytest
import torch
import yaml
from command_line import parse, run
from transformers import AutoModelForCausalLM


def test_a_run_is_repeated_from_its_record(arguments, cli_files, tmp_path, capsys):
    run(*arguments, "--seed", "none", "--no-refit", "--eval-dataset", cli_files / "test.txt", cli_files / "more.txt")
    record = tmp_path / "sliced" / "compress.yaml"
    again, wins = ("compress", "--config", record, "--output"), ("--sparsity", 0.5, "--no-check")
    run(*again, tmp_path / "again")
    run(*again, tmp_path / "other", *wins)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("sliced", "again", "other")]
    first, second = (model.state_dict() for model in models[:2])
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert models[2].config.hidden_size == 24 and "check" not in models[2].config.slicegpt
    before, after = (yaml.safe_load((tmp_path / name / "compress.yaml").read_text()) for name in ("sliced", "again"))
    assert before == after
    assert (before["seed"], before["refit"], before["parameter_reduction"]) == ("none", False, 0.2)
    assert before["eval_dataset"] == [str(cli_files / name) for name in ("test.txt", "more.txt")]


def test_several_sizes_are_in_the_file(arguments, tmp_path, capsys):
    file = tmp_path / "flags.yaml"
    file.write_text("parameter_reduction: [0.1, 0.2]\nwidths: null\noffload_activations: false\nslice-head: true\n")
    args = parse(*arguments, "--config", file)
    assert args.parameter_reduction == [0.1, 0.2] and args.slice_head and not hasattr(args, "offload_activations")
    assert not capsys.readouterr().err
    assert parse(*arguments, f"--config={file}", "--sparsity", 0.3).sparsity == 0.3
    assert f"parameter_reduction=[0.1, 0.2] of {file} is left out, because --sparsity" in capsys.readouterr().err
    # Flags of another such group, or the same one twice, are no obstacle.
    assert parse(*arguments, "--config", file, "--quiet", "--sparsity", 0.2, "--sparsity", 0.3).sparsity == 0.3
    assert f"parameter_reduction=[0.1, 0.2] of {file} is left out, because --sparsity" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(*arguments, "--config", file, "--sparsity", 0.3, "--max-loss", 0.2)
    assert "--max-loss: not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("sparcity: 0.2", "flags.yaml has no setting sparcity; did you mean sparsity?"),
        ("config: other.yaml", "flags.yaml has no setting config"),
        ("sparsity: 1.5", "flags.yaml: sparsity: '1.5' is more than all"),
        ("refit: 1", "flags.yaml: refit: 1 is neither true nor false"),
        ("sparsity: true", "flags.yaml: sparsity: True is no value of --sparsity"),
        ("metric: l2", "flags.yaml: metric: 'l2' is none of none, fisher"),
        ("batch_size: [1, 2]", "flags.yaml: batch_size takes one value"),
        ("- sparsity", "flags.yaml holds no settings, such as parameter_reduction: 0.2"),
        ("sparsity: [", "flags.yaml is no YAML: while parsing"),
        (None, "flags.yaml: No such file or directory"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(arguments, tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "flags.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit:
        parse(*arguments, "--config", tmp_path / "flags.yaml")
    assert exit.value.code == 2 and message in capsys.readouterr().err
