"""Three doors, one result; and every refusal before anything changes."""

import copy
import json
import logging

import pytest
import torch
from tiny import HIDDEN, TINY, VOCAB, aligned, build, calibration, paper, relative_error, tokens
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import optimum_slicegpt
from optimum_slicegpt import SliceGPTConfig, SliceGPTQuantizer
from optimum_slicegpt.modeling.modeling_sliced import SlicedLlamaForCausalLM
from optimum_slicegpt.slicing.skeleton import build_sliced, replace_in_place


def config(**kwargs):
    return paper(**{"sparsity": 0.3, "dataset": calibration()} | kwargs)


def default(**kwargs):
    return SliceGPTConfig(**{"sparsity": 1 / 3, "dataset": calibration()} | kwargs)


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


# Refusals


def refused(model, message, given=None, **kwargs):
    """Asserts that slicing raises the message and leaves the model as it was."""
    before, kind = {key: value.clone() for key, value in model.state_dict().items()}, type(model)
    with pytest.raises(ValueError, match=message):
        model.compress(given or config(), **kwargs)
    assert type(model) is kind
    after = {key: value for key, value in model.state_dict().items() if not value.is_meta}
    for key, value in after.items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_already_sliced():
    refused(build("llama").compress(config()), "already sliced; slice the dense model")
    refused(build("llama").compress(default()), "already sliced; slice the dense model")


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


def test_quantized():
    model = build("llama")
    model.hf_quantizer = object()
    refused(model, "is quantized; slice the full-precision model first")


def test_with_adapters():
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"])).base_model.model
    refused(adapted, r"carries PEFT adapters; call merge_and_unload\(\)")


def test_dispatched():
    from accelerate import cpu_offload

    refused(cpu_offload(build("llama")), "dispatched by accelerate .* load it on one device")


@pytest.mark.parametrize("device_map", ["auto", {"model": "cpu", "lm_head": "disk"}])
def test_spread_by_device_map(device_map, tmp_path):
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="may spread the model over devices before it is sliced"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config(), device_map=device_map)


def test_one_device_in_device_map(tmp_path):
    build("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config(), device_map="cpu")
    assert model.config.model_type == "sliced_llama"


def test_no_causal_language_model(tmp_path):
    build("llama").save_pretrained(tmp_path)
    refused(AutoModel.from_pretrained(tmp_path), "Cannot slice a LlamaModel; load the checkpoint as LlamaForCausalLM")


def test_unsupported_family_is_refused_before_its_weights_load(tmp_path):
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4}
    from transformers import Olmo2Config

    AutoModelForCausalLM.from_config(Olmo2Config(**sizes, intermediate_size=40)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Cannot slice model_type='olmo2': its post-norms"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sparsity": None, "widths": [8]}, "widths has 1 entries; this model has 5 sites"),
        ({"sparsity": None, "widths": [64] * 5}, "widths holds 64, more than the hidden size"),
        ({"dataset": []}, "."),
        ({"dataset": [{"input_ids": torch.tensor([[VOCAB, 3]])}]}, "97"),
        ({"dataset": ["some text"]}, "no tokenizer is known: pass tokenizer="),
        ({"dataset": ["some text"], "tokenizer": "no/such"}, "No tokenizer could be loaded from 'no/such'"),
    ],
)
def test_what_does_not_fit_the_model(kwargs, message):
    refused(build("llama"), message, config(**kwargs))


@pytest.mark.parametrize(("layer", "site"), [(0, r"site 1 \(layer 0, before its mlp"), (1, r"site 3 \(layer 1")])
def test_activations_that_are_not_finite(layer, site):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight[0, 0] = float("inf")
    refused(
        model,
        f"Activations at {site}.* not finite in torch.float64; the model is unchanged. Calibrate with a wider dtype",
    )


def test_activations_that_are_not_finite_before_the_head():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    refused(model, r"Activations at site 4 \(before the head\)")


def test_a_tensor_without_a_value():
    model = build("llama")
    sliced = build_sliced(model, optimum_slicegpt.SlicePlan(HIDDEN, (HIDDEN,) * 5))
    with pytest.raises(RuntimeError, match="No value was given to model.embed_tokens.weight"):
        replace_in_place(model, sliced)
    assert type(model) is LlamaForCausalLM


def test_fewer_tokens_than_dimensions_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        build("llama").compress(config(dataset=[{"input_ids": tokens(1, 20)}]))
    assert "20 calibration tokens for a hidden size of 48" in caplog.text


def test_growth_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="optimum_slicegpt"):
        build("llama").compress(config(sparsity=0.1))
    assert "The model grew from 30,288 to" in caplog.text


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


def test_devices_without_float64():
    model = build("llama", torch.float32)
    with pytest.raises(ValueError, match="Cannot slice on device='mps', which has no float64.*device='cpu'"):
        model.compress(SliceGPTConfig(sparsity=0.3, device="mps", dataset=calibration()))
    assert model.config.model_type == "llama"
