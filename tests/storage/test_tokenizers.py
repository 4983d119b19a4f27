"""Tokenizers that are saved beside a model: as the files that they come from, if they still are what those say."""

import json
import shutil

import pytest
from huggingface_hub import constants
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from optimum_slicegpt.storage.tokenizers import save_tokenizer


TEXT = "w3 w1 <x> other"


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    """Returns the folder of a tokenizer as transformers 4.5x writes it, otherwise than it is written here."""
    folder = tmp_path / "base"
    tiny_tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads((folder / "tokenizer.json").read_text()), indent=1))
    path = folder / "tokenizer_config.json"
    changes = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}", "padding_side": "left"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>", "unk_token": "<unk>"}')
    (folder / "vocab.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}


def test_files_are_copied_unchanged(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer(TEXT, truncation=True, max_length=3)  # which stays in its backend
    save_tokenizer(tokenizer, tmp_path / "sliced")
    assert contents(tmp_path / "sliced") == contents(base)


def test_files_are_copied_from_the_cache_of_the_hub(base, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--org--base"
    shutil.copytree(base, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_tokenizer(AutoTokenizer.from_pretrained("org/base"), tmp_path / "sliced")
    assert contents(tmp_path / "sliced") == contents(base)


CHANGES = {
    "a token": lambda tokenizer: tokenizer.add_tokens("<x>"),
    "a special token": lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<x>"}),
    "a template": lambda tokenizer: setattr(tokenizer, "chat_template", "{{ other }}"),
    "two templates": lambda tokenizer: setattr(tokenizer, "chat_template", {"default": "a", "tools": "b"}),
    "a side": lambda tokenizer: setattr(tokenizer, "padding_side", "right"),
    "a length": lambda tokenizer: setattr(tokenizer, "model_max_length", 5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_saved(base, tmp_path, change):
    tokenizer = AutoTokenizer.from_pretrained(base)
    CHANGES[change](tokenizer)
    save_tokenizer(tokenizer, tmp_path / "sliced")
    saved = AutoTokenizer.from_pretrained(tmp_path / "sliced")
    for name in ("chat_template", "padding_side", "model_max_length", "special_tokens_map"):
        assert getattr(saved, name) == getattr(tokenizer, name)
    assert len(saved) == len(tokenizer) and saved(TEXT) == tokenizer(TEXT)
    assert not (tmp_path / "sliced" / "vocab.json").exists()


def test_a_tokenizer_of_no_files_is_saved(tiny_tokenizer, tmp_path):
    save_tokenizer(tiny_tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT) == tiny_tokenizer(TEXT)


@pytest.mark.parametrize("vanish", [shutil.rmtree, lambda base: (base / "tokenizer.json").unlink()])
def test_a_tokenizer_whose_files_are_gone_is_saved(base, tmp_path, vanish):
    tokenizer = AutoTokenizer.from_pretrained(base)
    vanish(base)
    save_tokenizer(tokenizer, tmp_path / "sliced")
    assert AutoTokenizer.from_pretrained(tmp_path / "sliced")(TEXT) == tokenizer(TEXT)


@pytest.mark.parametrize("from_files", [False, True])
def test_older_readers_know_the_class_and_the_special_tokens(tiny_tokenizer, tmp_path, from_files):
    backend = tiny_tokenizer.backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", extra_special_tokens=["w1", "w2"])
    if from_files:
        tokenizer.save_pretrained(tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    save_tokenizer(tokenizer, tmp_path / "sliced")
    config = json.loads((tmp_path / "sliced" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in config
    assert config["model_input_names"] == ["input_ids", "attention_mask"]  # which generate() takes
    assert config["additional_special_tokens"] == ["w1", "w2"]
    saved = AutoTokenizer.from_pretrained(tmp_path / "sliced")
    assert type(saved) is type(tokenizer) and saved.extra_special_tokens == ["w1", "w2"]


def test_arguments_in_the_other_order_are_refused(tmp_path, tiny_tokenizer):
    with pytest.raises(TypeError, match="takes a tokenizer, and then a folder; got '.*sliced' first"):
        save_tokenizer(str(tmp_path / "sliced"), tiny_tokenizer)
