"""`optimum-cli slicegpt write`, and streaming with what it wrote."""

import json

from command_line import fails, parse, run
from safetensors.torch import load_file

from optimum_slicegpt.data.generated import OWN_TOKENS, TEXT_LENGTH


def test_text_is_written_and_shown(cli_files, home, capsys):
    arguments = ["write", "--model", cli_files / "dense", "--seqlen", 8]
    run(*arguments, "--tokens", 20, "--print", 2)
    printed = capsys.readouterr().out
    (file,) = home.glob("slicegpt/*.safetensors")
    assert load_file(file)["input_ids"].shape == (3, 8)
    assert printed.count("--- ") == 2 and "w" in printed
    assert "Written: 24 tokens, in 3 sequences of 8. Kept: 24." in printed and f"Saved in {file}" in printed
    run(*arguments, "--tokens", 40, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["written"], found["cached"], found["seqlen"], found["seed"]) == (16, 40, 8, 0)
    assert found["file"] == str(file) and found["texts"] == []
    run(*arguments, "--tokens", 8)
    assert "Written: 0 tokens, in 0 sequences of 8. Kept: 40." in capsys.readouterr().out


def test_sequences_are_as_long_as_the_model_allows(cli_files, capsys):
    run("write", "--model", cli_files / "dense", "--tokens", 65, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["written"], found["seqlen"]) == (128, 64)


def test_defaults_are_those_of_calibration():
    args = parse("write", "--model", "dense")
    assert (args.tokens, args.seqlen, args.seed) == (OWN_TOKENS, TEXT_LENGTH, 0)


def test_what_cannot_be_written(cli_files, capsys):
    message = fails(capsys, "write", "--model", cli_files / "dense", "--device", "cuda:99")
    assert "device='cuda:99' is not available here" in message


def test_what_streaming_asks_for_can_be_written(cli_files, tmp_path, capsys):
    model, output = ("--model", cli_files / "dense"), ("--output", tmp_path / "sliced")
    streaming = ("compress", *model, *output, "--stream", "--dataset", "self", "--nsamples", 8, "--seqlen", 16)
    line = fails(capsys, *streaming)
    command = line.partition("write them first: optimum-cli slicegpt ")[2].removesuffix(".")
    run(*command.split())
    run(*streaming, "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["slicegpt"]["calibration"]["source"] == "self"
