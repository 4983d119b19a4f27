"""`optimum-cli slicegpt compress`: what it refuses, and what a run that ends early leaves behind."""

import os
import re
import signal
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from command_line import fails, run
from configurations import BIASED
from huggingface_hub import HfApi
from huggingface_hub.utils import httpx
from paths import ROOT
from safetensors import SafetensorError
from tiny import build, calibration, tokens
from transformers import AutoModelForCausalLM, OpenAIGPTConfig, PreTrainedModel

from optimum_slicegpt import SliceGPTConfig, SliceGPTQuantizer
from optimum_slicegpt.commands import compress
from optimum_slicegpt.storage import files


TIED = {"tie_word_embeddings": True}


def test_an_output_that_is_not_empty_is_refused_untouched(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress, "load_model", lambda *args: pytest.fail("a model was loaded"))
    kept = tmp_path / "sliced" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert "is there already; give a place that is absent or empty" in fails(capsys, *arguments)
    assert kept.read_text() == "mine"
    assert list(tmp_path.rglob("*")) == [kept.parent, kept]


def test_a_run_that_is_told_to_end_leaves_nothing(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "load_model", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_data_is_read_before_weights(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compress, "load_model", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "rows.jsonl").write_text('{"title": "one", "body": "two"}\n')
    for more in ((), (tmp_path / "rows.jsonl",)):
        found = fails(capsys, *arguments, "--dataset", tmp_path / "rows.jsonl", *more)
        assert "No strings in text_column='text'" in found


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
        (["--widths", 8, 8], r"widths has 2 entries; this model has 5 sites"),
        (["--fit-memory", "1kB", "--context", 64], r"fit_memory='1kB' is too little for weights of"),
        (["--parameter-reduction", 0.999], r"parameter_reduction=0.999 is out of reach"),
        (["--mlp-sparsity", 0.9, "--round-neurons-to", 8], r"mlp_sparsity=0.9 leaves no neuron of 40"),
        (["--device", "cuda:99"], r"device='cuda:99' is not available here"),
        (
            ["--tokenizer", "no/such/tokenizer"],
            r"No tokenizer could be loaded from 'no/such/tokenizer'; give .*--token",
        ),
        (["--model", "no/such/model"], r"no/such/model"),
        (["--eval-dataset", "wikitext3"], r"--eval-dataset wikitext3: .* did you mean wikitext2"),
    ],
)
def test_what_can_be_refused_is_refused_before_a_model_is_loaded(
    arguments, tmp_path, capsys, monkeypatch, more, message
):
    monkeypatch.setattr(compress, "load_model", lambda *args: pytest.fail("a model was loaded"))
    assert re.search(message, fails(capsys, *arguments, *more))
    assert list(tmp_path.iterdir()) == []


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
    OpenAIGPTConfig().save_pretrained(tmp_path / "gpt")  # no weights at all
    options = ("--model", tmp_path / "gpt", "--tokenizer", cli_files / "dense")
    assert "Cannot slice model_type='openai-gpt': its norms act" in fails(capsys, *arguments, *options)


@pytest.mark.parametrize(
    "dataset, message",
    [
        (["missing.txt"], "missing.txt"),
        (["tests/tiny.py", "README.md"], "Unknown extension of 'tests/tiny.py'"),
        (["python-docs", "README.md"], "Unknown extension of 'README.md'"),
    ],
)
def test_datasets_that_cannot_be_read(arguments, tmp_path, capsys, dataset, message, monkeypatch):
    monkeypatch.chdir(ROOT)
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


# What fails only at the end


@pytest.fixture
def full_disk(monkeypatch):
    """Lets weights be written half, as on a disk that fills up."""

    def fill(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fill)


def test_a_disk_without_room_is_found_before_slicing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "compress", lambda *args, **kwargs: pytest.fail("it was sliced"))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: Namespace(free=1000))
    for more in ([], ["--stream", "--json"]):
        line = fails(capsys, *arguments, *more)
        assert re.search(
            r"The run writes 0.\d MB, and the disk of .* has 0.0 MB left; make room, or write elsewh", line
        )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_model_in_memory(arguments, tmp_path, capsys, full_disk, monkeypatch):
    message = ": I/O error: No space left on device (os error 28). Make room, or write elsewhere; in Python the"
    assert f"Cannot write to {str(tmp_path / 'sliced')!r}{message}" in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []

    quantizer = SliceGPTQuantizer(SliceGPTConfig(sparsity=1 / 3, dataset=calibration()))
    model = quantizer.quantize_model(build("llama", torch.float32))
    expected = model(tokens()).logits
    with pytest.raises(OSError, match="Cannot write to .*full': I/O error: No space left .*save it with save_"):
        quantizer.save(model, tmp_path / "full")
    monkeypatch.undo()
    assert torch.equal(model(tokens()).logits, expected)
    model.save_pretrained(tmp_path / "elsewhere")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")(tokens()).logits, expected)


@pytest.mark.parametrize(
    "answer, reason",
    [
        (OSError("Token is required."), "Token is required"),
        (httpx.ConnectError("[Errno 111] Connection refused"), r"\[Errno 111\] Connection refused"),
        ({"auth": {"accessToken": {"role": "read"}}}, "the token may only read"),
    ],
)
def test_publishing_is_tried_before_slicing(arguments, tmp_path, capsys, monkeypatch, answer, reason):
    def whoami(api):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(compress, "load_model", lambda *args: pytest.fail("a model was loaded"))
    monkeypatch.setattr(HfApi, "whoami", whoami)
    line = fails(capsys, *arguments, "--push-to-hub", "me/sliced")
    assert re.search(f"Cannot publish in 'me/sliced': {reason}. Log in with a token that may write", line)
    assert list(tmp_path.iterdir()) == []


def test_a_push_that_fails_names_the_folder(arguments, tmp_path, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("It was cut off.")

    monkeypatch.setattr(HfApi, "whoami", lambda api: {"auth": {}})
    monkeypatch.setattr(PreTrainedModel, "push_to_hub", refuse)
    line = fails(capsys, *arguments, "--push-to-hub", "me/it")
    output = tmp_path / "sliced"
    assert (
        f"It was cut off. The model is complete in '{output}'; publish it from there: hf upload me/it {output}" in line
    )
    assert (output / "model.safetensors").is_file()
