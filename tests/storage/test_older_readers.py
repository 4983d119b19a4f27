"""What older readers know of a `config.json`: they seek other keys than transformers 5."""

import json

import pytest
import torch
from configurations import tiny_config
from sliced_models import sliced_model
from tiny import TINY, build, tokens
from transformers import AutoConfig, AutoModelForCausalLM


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}, LLAMA3, YARN]
ROPES += [YARN | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0}]
NEW = "cohere_compass_text"
"""It has rotations for each kind of layer, and no older reader."""
CASES = [(name, None) for name in dict.fromkeys([*TINY, "mellum"]) if name != NEW]
CASES += [(name, rope) for name in ("llama", "mistral", "qwen2", "stablelm", "gpt_neox") for rope in ROPES]


def result(name="llama", rope=None, dtype=torch.float32):
    """Builds a model of a stock class with a record, and a base of its rotations that is no default."""
    config = tiny_config(name)
    if "rope_type" in (getattr(config, "rope_parameters", None) or {}):
        rope = config.rope_parameters | {"rope_theta": 500.0} | (rope or {})
    model = build(name, dtype, **{} if rope is None else {"rope_parameters": rope})
    model.config.slicegpt = {"base_model": "org/base"}
    return model


def read(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name, rope", CASES)
def test_older_keys_alone_give_the_same_logits(tmp_path, name, rope):
    model = result(name, rope)
    model.save_pretrained(tmp_path)
    keys = read(tmp_path)
    assert keys["torch_dtype"] == keys["dtype"] == "float32"
    newer = {"rope_parameters", "dtype"} | ({"num_local_experts"} if name == "qwen3_moe" else set())
    older = {key: value for key, value in keys.items() if key not in newer}
    (tmp_path / "config.json").write_text(json.dumps(older))
    read_by_others = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read_by_others(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("name, rope", CASES)
def test_a_model_that_is_loaded_and_saved_again_is_the_same(tmp_path, name, rope):
    model = result(name, rope)
    model.save_pretrained(tmp_path / "once")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    again.save_pretrained(tmp_path / "twice")
    once, twice = read(tmp_path / "once"), read(tmp_path / "twice")
    if name == "mpt":  # Its other configuration, in this one, gets the dtype when it is loaded.
        once["attn_config"]["dtype"] = twice["attn_config"]["dtype"]
    if name == "phi3-longrope":  # Its older name of the type is in rope_parameters from now on.
        once["rope_parameters"]["type"] = "longrope"
    assert once == twice


def test_no_older_key_is_stale(tmp_path):
    model = result(rope=YARN)
    model.save_pretrained(tmp_path)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 700.0}
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    keys = read(tmp_path)
    assert (keys["rope_theta"], keys["rope_scaling"], keys["torch_dtype"]) == (700.0, None, "bfloat16")


def test_rotations_of_layers_with_a_window(tmp_path):
    model = result("gemma3_text")
    model.config.rope_parameters["sliding_attention"]["rope_theta"] = 300.0
    model.save_pretrained(tmp_path)
    keys = read(tmp_path)
    assert (keys["rope_theta"], keys["rope_local_base_freq"], keys["rope_scaling"]) == (1e6, 300.0, None)
    older = AutoConfig.for_model(**{key: value for key, value in keys.items() if key != "rope_parameters"})
    assert older.rope_parameters == model.config.rope_parameters


def test_names_of_families(tmp_path):
    result("gpt_neox").save_pretrained(tmp_path / "gpt_neox")
    keys = read(tmp_path / "gpt_neox")
    assert (keys["rotary_emb_base"], keys["rotary_pct"]) == (500.0, 0.25)
    result("phi3-longrope").save_pretrained(tmp_path / "phi3")
    assert read(tmp_path / "phi3")["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}


@pytest.mark.parametrize("make", [lambda: build("llama", torch.float32), sliced_model])
def test_dense_models_and_classes_of_ours_have_no_older_keys(tmp_path, make):
    make().save_pretrained(tmp_path)
    assert read(tmp_path).keys().isdisjoint({"torch_dtype", "rope_theta", "rope_scaling"})
