"""`optimum-cli slicegpt export`."""

import json

import pytest
import torch
from command_line import fails, run
from configurations import BIASED
from sliced_models import model_of_one_width
from tiny import relative_error, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    model = model_of_one_width("nemotron", 31, torch.bfloat16, {"vocab_size": 98})
    model.generation_config.update(max_new_tokens=7)
    model.save_pretrained(tmp_path / "sliced")
    tiny_tokenizer.save_pretrained(tmp_path / "sliced")
    return tmp_path


@torch.no_grad()
def test_command(folder, capsys):
    run("export", "--model", folder / "sliced", "--output", folder / "stock", "--json")
    report = json.loads(capsys.readouterr().out)
    stock = AutoModelForCausalLM.from_pretrained(folder / "stock")
    assert report == {
        "model": str(folder / "sliced"),
        "output": str(folder / "stock"),
        "architecture": "NemotronForCausalLM",
        "hidden_size": 32,
        "parameters": stock.num_parameters(),
        "bytes_on_disk": (folder / "stock" / "model.safetensors").stat().st_size,
    }
    assert stock.dtype == torch.bfloat16 and stock.generation_config.max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(folder / "stock")("w5").input_ids == [97, 5]
    assert not list((folder / "stock").glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(folder / "sliced")
    assert relative_error(stock.float()(tokens()).logits, model.float()(tokens()).logits) < 0.05


def test_command_prints(folder, capsys):
    run("export", "--model", folder / "sliced", "--output", folder / "stock")
    assert capsys.readouterr().out.startswith("NemotronForCausalLM: hidden size 32, ")


def test_command_refuses_before_weights_are_read(tmp_path, tiny_tokenizer, capsys):
    model = model_of_one_width("llama", 30, overrides=BIASED)
    model.config.save_pretrained(tmp_path / "sliced")  # no weights at all
    tiny_tokenizer.save_pretrained(tmp_path / "sliced")
    line = fails(capsys, "export", "--model", tmp_path / "sliced", "--output", tmp_path / "stock")
    assert "no class of transformers holds hidden_size=30" in line
    assert not (tmp_path / "stock").exists()
