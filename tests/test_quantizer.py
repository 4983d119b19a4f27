"""Three doors, one result, and what it keeps of the model."""

import copy
import json
import logging

import pytest
import torch
from slicing_settings import config, default
from tiny import TINY, aligned, build, calibration, paper, relative_error, tokens
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import optimum_slicegpt
from optimum_slicegpt import SliceGPTConfig, SliceGPTQuantizer
from optimum_slicegpt.modeling.modeling_sliced import SlicedLlamaForCausalLM


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", TINY)
def test_three_doors_one_result(name, tmp_path):
    model = build(name, torch.float32)
    model.save_pretrained(tmp_path / "dense")
    hook = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config())
    method = build(name, torch.float32).compress(config())
    quantizer = SliceGPTQuantizer.from_dict(SliceGPTQuantizer(config()).to_dict())
    quantizer.config.dataset = calibration()
    assert quantizer.quantize_model(model) is model
    assert type(hook) is type(method) is type(model)
    assert equal(hook, method) and equal(hook, model)
    assert not hook.training


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma", {"tie_word_embeddings": True}),  # multiplies what it looks up by the root of the hidden size
        ("qwen2", {"use_sliding_window": False}),  # becomes a Llama
        ("nemotron", {}),  # LayerNorms
        ("mixtral", {}),
    ],
)
def test_three_doors_to_a_stock_class(name, overrides, tmp_path):
    build(name, torch.float32, **overrides).save_pretrained(tmp_path / "dense")
    hook = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=default())
    method = build(name, torch.float32, **overrides).compress(default())
    assert type(hook) is type(method) is (LlamaForCausalLM if name == "qwen2" else type(build(name)))
    assert equal(hook, method) and not hook.training
    method.save_pretrained(tmp_path / "method")
    hook.save_pretrained(tmp_path / "hook")
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / door) for door in ("hook", "method")]
    assert all(type(model) is type(method) and equal(model, method) for model in loaded)
    assert aligned(loaded[0])(tokens()).logits.equal(aligned(method)(tokens()).logits)


@pytest.mark.parametrize("settings, kind", [(paper(), SlicedLlamaForCausalLM), (SliceGPTConfig(), LlamaForCausalLM)])
def test_nothing_marks_the_result_as_quantized(settings, kind, tmp_path):
    build("llama").save_pretrained(tmp_path)
    settings.dataset = calibration()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)
    assert type(model) is kind
    assert not getattr(model, "is_quantized", False)
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        assert mark not in vars(model)
    assert not hasattr(model.config, "quantization_config") and not hasattr(model.config, "_is_quantized")
    assert "quantization_config" not in model.config.to_dict()


def test_how_it_was_made_is_kept():
    dense = build("llama")
    before = dense.num_parameters()
    record = dense.compress(config(seed=3)).config.slicegpt
    assert (record["sparsity"], record["orientation"], record["seed"]) == (0.3, "pca", 3)
    assert record["calibration"] == {"source": "tokens", "tokens": 144, "groups": [144]}
    assert (record["parameters_before"], record["parameters_after"]) == (before, dense.num_parameters())
    assert len(record["energy_kept"]) == 5 and record["energy_kept"][-1] == 1
    assert all(0.5 < share < 1 for share in record["energy_kept"][:-1])
    assert set(record["seconds"]) == {"forward", "second moments", "axes", "compose"}


def test_inputs_and_global_generator_are_untouched():
    data, state = calibration(), torch.get_rng_state()
    before = copy.deepcopy(data)
    model = build("llama")
    torch.set_rng_state(state)
    model.compress(config(dataset=data, orientation="random"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(old["input_ids"], new["input_ids"]) for old, new in zip(before, data, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "opt", "phi"])
def test_padding_changes_nothing(name, side):
    short, long = tokens(1, 16, seed=3), tokens(1, 24, seed=4)
    pad = torch.zeros(1, 8, dtype=torch.long)
    both = torch.cat([torch.cat([pad, short] if side == "left" else [short, pad], 1), long])
    mask = torch.ones_like(both)
    mask[0, :8] = 0
    if side == "right":
        mask[0] = mask[0].flip(0)
    padded = build(name).compress(config(dataset=[{"input_ids": both, "attention_mask": mask}]))
    plain = build(name).compress(config(dataset=[{"input_ids": short}, {"input_ids": long}]))
    assert padded.config.slicegpt["calibration"]["tokens"] == 40
    assert relative_error(padded(tokens()).logits, plain(tokens()).logits) < 1e-6


def test_training_mode_generation_config_and_dtype_are_kept():
    model = build("llama", torch.bfloat16).train()
    model.generation_config.temperature = 0.5
    model.compress(config())
    assert model.training and model.dtype == torch.bfloat16
    assert model.generation_config.temperature == 0.5
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_offloaded_activations_give_the_same_weights():
    assert equal(build("llama").compress(config()), build("llama").compress(config(offload_activations=True)))


def test_save_and_load(tmp_path):
    quantizer = SliceGPTQuantizer(config())
    model = quantizer.quantize_model(build("llama"))
    quantizer.save(model, tmp_path)
    assert equal(quantizer.load(tmp_path), model)


def test_importing_twice_registers_once():
    import importlib

    importlib.reload(optimum_slicegpt)
    assert build("llama").compress(config()).config.model_type == "sliced_llama"


def test_fewer_tokens_than_dimensions_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        build("llama").compress(config(dataset=[{"input_ids": tokens(1, 20)}]))
    assert "20 calibration tokens for a hidden size of 48" in caplog.text


def test_growth_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        build("llama").compress(config(sparsity=0.1))
    assert "The model grew from 30,288 to" in caplog.text


def test_growth_by_an_untied_head_is_told_apart(caplog):
    model = build("llama", tie_word_embeddings=True, vocab_size=400)
    model.compress(config(sparsity=1 / 3, embeddings="sliced"))
    told = "the head, which shared the embedding's matrix, has one of its own with 19,200; all other parts have 8,128 "
    assert told in caplog.text and "Raise sparsity" not in caplog.text


@torch.no_grad()
def test_text_through_the_tokenizer(tiny_tokenizer):
    text = " ".join(f"w{number % 95}" for number in range(3, 400))
    settings = config(dataset=[text], seqlen=32, nsamples=4)
    given = build("llama").compress(settings, tokenizer=tiny_tokenizer)
    held = build("llama").compress(config(dataset=[text], seqlen=32, nsamples=4, tokenizer=tiny_tokenizer))
    assert equal(given, held)
    assert given.config.slicegpt["calibration"] == {"source": "texts, self", "tokens": 128, "groups": [64, 64]}


def test_sequences_are_cut_to_the_positions_of_the_model(tiny_tokenizer):
    text = " ".join(f"w{number % 95}" for number in range(3, 400))
    model = build("opt").compress(config(dataset=[text], seqlen=2048, nsamples=1), tokenizer=tiny_tokenizer)
    assert model.config.slicegpt["calibration"]["tokens"] == 64


def test_configuration_of_the_sliced_class_is_kept_apart_from_llama():
    assert not isinstance(LlamaConfig(), SlicedLlamaForCausalLM.config_class)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_masks_survive_a_narrower_dtype(dtype):
    """Eager attention masks by float32's least number, which is minus infinity in half precision."""
    batch = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
    batch["attention_mask"][0, :5] = 0
    model = build("llama", torch.float32)
    model.set_attn_implementation("eager")
    model.compress(SliceGPTConfig(sparsity=0.3, dtype=dtype, dataset=[batch]))
    assert model(tokens()).logits.isfinite().all()


def test_a_stock_result_whose_record_was_dropped_is_an_ordinary_model(tmp_path):
    model = build("llama").compress(default())
    model.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    del entries["slicegpt"]
    (tmp_path / "config.json").write_text(json.dumps(entries))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert equal(loaded, model)
    assert loaded.compress(default()).config.slicegpt["hidden_size"] == 32
    assert loaded.config.hidden_size < 32


def test_one_device_in_device_map(tmp_path):
    build("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config(), device_map="cpu")
    assert model.config.model_type == "sliced_llama"
