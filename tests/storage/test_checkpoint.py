"""Checkpoints that are read tensor by tensor, and those that are refused."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import fails
from safetensors.torch import save_file
from shard_files import change_shard, list_shards
from tiny import TINY, build
from transformers import AutoModelForCausalLM

from optimum_slicegpt.storage.checkpoint import Checkpoint


SHARDS = {"max_shard_size": "30KB"}


@pytest.fixture
def folder(tmp_path):
    """Returns the folder of a checkpoint in several files."""
    build("llama", torch.float32).save_pretrained(tmp_path / "dense", **SHARDS)
    return tmp_path / "dense"


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("sizes", [{}, SHARDS])
@pytest.mark.parametrize("name", TINY)
def test_tensors_are_those_that_from_pretrained_loads(tmp_path, name, sizes):
    build(name, torch.float32).save_pretrained(tmp_path, **sizes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    found = checkpoint.tensors(name for name, _ in loaded.named_children())
    expected = dict(loaded.named_parameters(remove_duplicate=False))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert checkpoint.model.num_parameters() == loaded.num_parameters()
    assert all(parameter.is_meta for parameter in checkpoint.model.parameters())
    buffers = dict(checkpoint.model.named_buffers())
    assert all(torch.equal(buffers[key], buffer) for key, buffer in loaded.named_buffers())
    assert checkpoint.model.config.to_dict() == loaded.config.to_dict()
    assert checkpoint.model.generation_config == loaded.generation_config


def test_tensors_are_cast(folder):
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    found = Checkpoint(folder, "bfloat16").tensors(["model"])
    assert all(torch.equal(found[key], loaded.state_dict()[key]) for key in found)


def test_tied_tensors_are_one(tmp_path):
    build("llama", torch.float32, tie_word_embeddings=True).save_pretrained(tmp_path)
    found = Checkpoint(tmp_path).tensors(["model.embed_tokens", "lm_head"])
    assert found["lm_head.weight"] is found["model.embed_tokens.weight"]


@pytest.mark.parametrize("stored", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_tensors_under_either_name_or_both(tmp_path, stored):
    model = build("llama", torch.float32, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    table = model.lm_head.weight.detach().clone()

    def rename(tensors):
        del tensors["model.embed_tokens.weight"]
        tensors[stored] = table

    change_shard(tmp_path, rename)
    assert torch.equal(Checkpoint(tmp_path).tensor("lm_head.weight"), table)
    both = {"lm_head.weight": table, "model.embed_tokens.weight": table.clone()}
    change_shard(tmp_path, lambda tensors: tensors.update(both))
    assert torch.equal(Checkpoint(tmp_path).tensor("lm_head.weight"), table)
    both["lm_head.weight"] = table + 1
    change_shard(tmp_path, lambda tensors: tensors.update(both))
    with pytest.raises(ValueError, match="different values for lm_head.weight and .*, which its configuration ties"):
        Checkpoint(tmp_path)


# What is refused. Each takes a checkpoint in several files, and gives what the error says.


def cut_short(folder):
    path = list_shards(folder)[1]
    path.write_bytes(path.read_bytes()[:-10])
    return r"model-00002-of-\d+.safetensors' is damaged \(.*\); download it again"


def no_safetensors_at_all(folder):
    list_shards(folder)[1].write_bytes(b"\x80\x04cposix\nsystem\n")
    return r"model-00002-of-\d+.safetensors' is damaged"


def missing_file(folder):
    list_shards(folder)[1].unlink()
    return r"lacks 'model-00002-of-\d+.safetensors', which its index names; download it again"


def missing_tensor(folder):
    for index in range(len(list_shards(folder))):
        change_shard(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight", None), index)
    return r"lacks 1 tensors, the first model.layers.0.self_attn.q_proj.weight; download it again"


def without_a_head(folder):
    for index in range(len(list_shards(folder))):
        change_shard(folder, lambda tensors: tensors.pop("lm_head.weight", None), index)
    return "has no head, .*; slice the causal .*, or, if its head was the embedding, set tie_word_embeddings to true"


def other_shape(folder):
    change_shard(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.ones(3, 5)}))
    return r"model.embed_tokens.weight in .* has shape \(3, 5\), and by the configuration \(97, 48\)"


def damaged_index(folder):
    (folder / "model.safetensors.index.json").write_text("{]")
    return r"index.json' is not an index of weights: .*Download it again"


def index_of_nothing(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    return r"is not an index of weights"


def path_out_of_the_folder(folder):
    change_index(folder, lambda files: files.update({"lm_head.weight": "../secret.safetensors"}))
    return r"names '../secret.safetensors', which is no safetensors file inside its folder; do not trust it"


def absolute_path(folder):
    change_index(folder, lambda files: files.update({"lm_head.weight": "/etc/secret.safetensors"}))
    return r"names '/etc/secret.safetensors', which is no safetensors file"


def pickle_in_the_index(folder):
    change_index(folder, lambda files: files.update({"lm_head.weight": "pytorch_model.bin"}))
    return r"names 'pytorch_model.bin', which is no safetensors file"


def link_out_of_the_folder(folder):
    path = list_shards(folder)[1]
    path.rename(folder.parent / "secret.safetensors")
    path.symlink_to(folder.parent / "secret.safetensors")
    return r"is a link to '.*secret.safetensors', out of its folder; copy the file there if you trust it"


def only_pickle(folder):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(folder / "unpickled"),)

    for path in [*list_shards(folder), folder / "model.safetensors.index.json"]:
        path.unlink()
    torch.save({"lm_head.weight": Hostile()}, folder / "pytorch_model.bin")
    return r"has no weights in safetensors, the one format that is read: others can run code"


def quantized(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    return r"is quantized; slice the full-precision model first"


HOSTILE = [cut_short, no_safetensors_at_all, missing_file, missing_tensor, other_shape, damaged_index, without_a_head]
HOSTILE += [index_of_nothing, path_out_of_the_folder, absolute_path, pickle_in_the_index, link_out_of_the_folder]
HOSTILE += [only_pickle, quantized]


@pytest.mark.parametrize("harm", HOSTILE)
def test_refused_before_anything_is_read(folder, harm, caplog):
    with pytest.raises((ValueError, OSError), match=harm(folder)):
        Checkpoint(folder)
    assert "MISMATCH" not in caplog.text
    assert not (folder / "unpickled").exists()


@pytest.mark.parametrize("more", [[], ["--stream"]])
@pytest.mark.parametrize("harm", [cut_short, missing_file, missing_tensor, path_out_of_the_folder, only_pickle])
def test_refused_by_the_command_in_a_line(cli_files, tmp_path, capsys, harm, more):
    folder = tmp_path / "dense"
    shutil.copytree(cli_files / "dense", folder)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, **SHARDS)
    (folder / "model.safetensors").unlink()
    message = harm(folder)
    data = ("--dataset", cli_files / "train.txt", "--nsamples", 8, "--seqlen", 16)
    line = fails(capsys, "compress", "--model", folder, "--output", tmp_path / "sliced", *data, *more)
    assert re.search(message, line)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("secret")) == ["dense"]


def test_weights_that_are_not_finite(cli_files, tmp_path, capsys):
    folder = tmp_path / "dense"
    shutil.copytree(cli_files / "dense", folder)
    change_shard(folder, lambda tensors: tensors["lm_head.weight"].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"lm_head.weight in '.*model.safetensors' is not finite in torch.float32"):
        Checkpoint(folder).tensors(["lm_head"])
    arguments = ["compress", "--model", folder, "--output", tmp_path / "sliced", "--dataset", cli_files / "train.txt"]
    arguments += ["--nsamples", 8, "--seqlen", 16]
    assert "lm_head.weight was written with values that are not finite" in fails(capsys, *arguments)
    assert "lm_head.weight in" in fails(capsys, *arguments, "--stream", "--json")
    assert not (tmp_path / "sliced").exists()


def test_what_is_too_much_is_left_alone(folder):
    """`from_pretrained` leaves these tensors alone as well, and warns of them."""
    expected = Checkpoint(folder).tensors(["model", "lm_head"])
    change_shard(folder, lambda tensors: tensors.update({"model.other.weight": torch.ones(3)}))
    save_file({"lm_head.weight": torch.ones(97, 48)}, folder / "model-00099-of-00099.safetensors")
    found = Checkpoint(folder).tensors(["model", "lm_head"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_links_within_the_hub_cache_are_followed(folder, tmp_path):
    """The files of a snapshot are links to blobs beside the snapshots."""
    blobs, snapshot = tmp_path / "models--me--llama" / "blobs", tmp_path / "models--me--llama" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(folder.iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert Checkpoint(snapshot).tensors(["lm_head"])


def test_the_fingerprint_changes_with_the_files(folder):
    before = Checkpoint(folder).fingerprint()
    assert json.loads(json.dumps(before)) == Checkpoint(folder).fingerprint() == before
    change_shard(folder, lambda tensors: None)
    assert Checkpoint(folder).fingerprint() != before
