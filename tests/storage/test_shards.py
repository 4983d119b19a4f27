"""Weight files as they are written, and checked afterwards."""

import json

import pytest
import torch
from shard_files import change_shard, list_shards
from tiny import build

from optimum_slicegpt.storage.shards import Shards, verify_checkpoint


@pytest.fixture
def written(tmp_path):
    """Returns a model, and the folder of its checkpoint in several files."""
    model = build("llama", torch.float32)
    shards = Shards(tmp_path / "written", model, "30KB")
    shards.allocate()
    for name, tensor in model.state_dict().items():
        shards.write(name, tensor)
    return model, tmp_path / "written"


def test_what_was_written_is_verified(written):
    model, folder = written
    verify_checkpoint(folder, model)
    path = list_shards(folder)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="model-00002-of-.* was not written whole"):
        verify_checkpoint(folder, model)
    path.unlink()
    with pytest.raises(ValueError, match="model-00002-of-.* was not written whole"):
        verify_checkpoint(folder, model)
    path.write_bytes(whole)
    more = folder / "model-00009-of-00009.safetensors"
    more.write_bytes(whole)
    with pytest.raises(ValueError, match=r"and its model do not agree in \['model-00009-of-00009.safetensors'\]"):
        verify_checkpoint(folder, model)
    more.unlink()

    change_shard(folder, lambda tensors: tensors.update({"more": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"and its model do not agree in \['more'\]"):
        verify_checkpoint(folder, model)
    change_shard(folder, lambda tensors: tensors.pop("more"))
    verify_checkpoint(folder, model)
    change_shard(folder, lambda tensors: tensors["model.embed_tokens.weight"].mul_(torch.inf))
    with pytest.raises(ValueError, match="model.embed_tokens.weight was written with values that are not finite"):
        verify_checkpoint(folder, model)
    change_shard(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.ones(5, 7)}))
    with pytest.raises(ValueError, match=r"model.embed_tokens.weight was written as \(5, 7\) in F32; the model has"):
        verify_checkpoint(folder, model)


def test_what_does_not_fit_is_not_written(written, tmp_path):
    model, folder = written
    shards = Shards(folder, model, "30KB")
    with pytest.raises(ValueError, match=r"lm_head.weight came out as \(2, 3\) in torch.float32; the model has"):
        shards.write("lm_head.weight", torch.ones(2, 3))
    with pytest.raises(ValueError, match="lm_head.weight is not finite once it is sliced; calibrate with"):
        shards.write("lm_head.weight", torch.full((97, 48), torch.nan))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_written_one_by_one_as_transformers_writes_them(tmp_path, name):
    model = build(name, torch.float32)
    model.save_pretrained(tmp_path / "saved", max_shard_size="30KB")
    verify_checkpoint(tmp_path / "saved", model)
    shards = Shards(tmp_path / "written", model, "30KB")
    shards.allocate()
    for key, tensor in model.state_dict().items():
        shards.write(key, tensor)
    saved, written = (sorted((tmp_path / folder).glob("model*")) for folder in ("saved", "written"))
    assert [path.name for path in saved] == [path.name for path in written]
    assert all(path.read_bytes() == other.read_bytes() for path, other in zip(saved, written, strict=True))


def test_room_for_other_shapes_leaves_no_files_of_the_first(tmp_path):
    for limit in (6000, 9000):
        shards = Shards(tmp_path, build("llama", torch.float32), limit)
        shards.allocate()
        named = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        assert {path.name for path in tmp_path.glob("*.safetensors")} == set(named.values())
