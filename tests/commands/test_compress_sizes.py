"""`optimum-cli slicegpt compress` to several sizes at once."""

import json
import re

import pytest
from command_line import fails, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_slicegpt.commands.printing import print_sizes


@pytest.fixture
def several(arguments):
    return [*arguments, "--parameter-reduction", "30%", 0.1, 0.1]


def test_each_size_has_a_folder_and_a_row(several, cli_files, tmp_path, capsys):
    run(*several, "--eval-dataset", cli_files / "test.txt", "--eval-seqlen", 16)
    printed = capsys.readouterr().out
    head, dense, *rows = printed.splitlines()
    assert head.split("  ")[0] == "loss, nats per token" and head.endswith("  mean  perplexity on test.txt")
    assert re.fullmatch(r"dense +[\d,]+ +[\d.]+", dense)
    for row, name in zip(rows, ("10", "30"), strict=True):
        folder = tmp_path / "sliced" / name
        assert re.fullmatch(rf"{folder} +[\d,]+ +-[\d.]+%(  .[\d.]+ ± [\d.]+){{2}} +.[\d.]+ +[\d.]+", row)
        model = AutoModelForCausalLM.from_pretrained(folder)
        record = model.config.slicegpt
        assert f"  {record['parameters_after']:,}  " in row and model.num_parameters() == record["parameters_after"]
        assert record["parameter_reduction"] == int(name) / 100 and record["check"]["answers"]
        assert AutoTokenizer.from_pretrained(folder)("w5").input_ids == [97, 5]
        assert (folder / "slicegpt.png").is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["sliced"]


def test_several_sizes_as_json(several, tmp_path, capsys):
    run(*several, "--no-check", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [each["slicegpt"]["parameter_reduction"] for each in found["sizes"]] == [0.1, 0.3]
    assert [each["output"] for each in found["sizes"]] == [str(tmp_path / "sliced" / name) for name in ("10", "30")]
    assert all(each["bytes_on_disk_after"] > 0 for each in found["sizes"])


def test_sizes_without_a_check_are_printed(capsys):
    record = {"parameters_before": 1000, "parameters_after": 900}
    print_sizes([{"output": "sizes/10", "slicegpt": record}])
    assert re.search(r"^sizes/10 +900 +-10.0%$", capsys.readouterr().out, re.MULTILINE)


def test_a_plan_refuses_what_a_run_refuses(arguments, capsys):
    asked = [*arguments, "--parameter-reduction", 0.85, "--plan"]
    assert "parameter_reduction=0.85 leaves 8 of 48 dimensions, less than a quarter" in fails(capsys, *asked)


def test_the_plan_has_all_sizes(several, capsys):
    run(*several, "--plan", "--json")
    counts = [each["parameters_after"] for each in json.loads(capsys.readouterr().out)["sizes"]]
    run(*several, "--plan")
    printed = capsys.readouterr().out
    assert counts[0] > counts[1] and all(f" before, {count:,} after, " in printed for count in counts)


def test_a_limit_gives_a_size_and_what_was_tried(arguments, tmp_path, capsys):
    limit = ["--max-perplexity-increase", "10%", "--refine", 0]
    run(*arguments, *limit, "--plan", "--json")
    assert json.loads(capsys.readouterr().out)["runs"] == 3
    assert list(tmp_path.iterdir()) == []
    run(*arguments, *limit)
    printed = capsys.readouterr().out
    assert re.search(
        r"^at most 0.095 nats; parameters and what they lose: [\d.]+% fewer .[\d.]+", printed, re.MULTILINE
    )
    check = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced").config.slicegpt["check"]
    assert check["loss"] in check["sizes"].values()
    assert check["loss"] <= check["max_loss"] == pytest.approx(0.0953, abs=1e-4)


def test_streaming_needs_a_size(arguments, capsys):
    assert "max_loss=0.1: the size is found by slicing and measuring" in fails(
        capsys, *arguments, "--stream", "--max-loss", 0.1
    )
