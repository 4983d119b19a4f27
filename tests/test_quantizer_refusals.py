"""Every refusal to slice comes before anything changes."""

from contextlib import contextmanager

import pytest
import torch
from slicing_settings import config, default
from tiny import HIDDEN, VOCAB, build, calibration
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

import optimum_slicegpt
from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.slicing.methods.fitted_stream import FittedStream
from optimum_slicegpt.slicing.skeleton import build_sliced, replace_in_place
from optimum_slicegpt.slicing.statistics import DensePass


def refused(model, message, given=None, **kwargs):
    """Asserts that slicing raises the message and leaves the model as it was."""
    before, kind = {key: value.clone() for key, value in model.state_dict().items()}, type(model)
    with pytest.raises(ValueError, match=message):
        model.compress(given or config(), **kwargs)
    assert type(model) is kind
    after = {key: value for key, value in model.state_dict().items() if not value.is_meta}
    for key, value in after.items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("wrong", [0.2, None, {"sparsity": 0.2}])
def test_settings_that_are_none(wrong):
    with pytest.raises(TypeError, match=r"config must be a SliceGPTConfig, such as .*; got (0.2|None|\{'spars.*)\.$"):
        build("llama").compress(wrong)


def test_already_sliced():
    refused(build("llama").compress(config()), "already sliced; slice the dense model")
    refused(build("llama").compress(default()), "already sliced; slice the dense model")


def test_quantized():
    model = build("llama")
    weight = model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
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


def test_no_causal_language_model(tmp_path):
    build("llama").save_pretrained(tmp_path)
    refused(AutoModel.from_pretrained(tmp_path), "Cannot slice a LlamaModel; load the checkpoint as LlamaForCausalLM")


def test_unsupported_family_is_refused_before_its_weights_load(tmp_path):
    from transformers import OpenAIGPTConfig

    sizes = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 1, "n_head": 4}
    AutoModelForCausalLM.from_config(OpenAIGPTConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Cannot slice model_type='openai-gpt': its norms act on the residual stream"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sparsity": None, "widths": [8]}, "widths has 1 entries; this model has 5 sites"),
        ({"sparsity": None, "widths": [64] * 5}, "widths holds 64, more than the hidden size"),
        ({"dataset": []}, "."),
        (
            {"sparsity": None, "parameter_reduction": 0.75},
            "parameter_reduction=0.75 leaves .* of 4[08] .*, less than a quarter, which destroys a model. Delete",
        ),
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


@pytest.mark.parametrize(
    ("owner", "name", "site"),
    [
        (FittedStream, "start", r"Activations at site 0 \(layer 0, before its attn"),
        (FittedStream, "reading", r"Activations at site 1 \(layer 0, before its mlp"),
        (DensePass, "_add_gradient", r"Gradients at site 4 \(before the head"),
    ],
)
def test_sums_that_are_not_finite_name_their_site(monkeypatch, owner, name, site):
    """Whatever overflows in between: some factorizations on GPUs would return numbers for them."""
    original = getattr(owner, name)

    def overflowing(self, *args):
        if name == "_add_gradient":
            return original(self, args[0].mul_(float("nan")), *args[1:])
        original(self, *args)
        for values in self.run.state.z:
            values[0, -1] = float("inf")

    @contextmanager
    def reading(self, block):
        with original(self, block) as inputs_of:
            yield lambda *args: inputs_of(*args).mul_(float("inf"))

    monkeypatch.setattr(owner, name, reading if name == "reading" else overflowing)
    refused(build("llama"), f"{site}.* not finite in torch.float64; the model", default(metric="fisher"))


def test_a_tensor_without_a_value():
    model = build("llama")
    sliced = build_sliced(model, optimum_slicegpt.SlicePlan(HIDDEN, (HIDDEN,) * 5))
    with pytest.raises(RuntimeError, match="No value was given to model.embed_tokens.weight"):
        replace_in_place(model, sliced)
    assert type(model) is LlamaForCausalLM


def test_weights_without_values():
    for name in ("model.layers.1.mlp", ""):
        model = build("llama")
        model.get_submodule(name).to("meta")
        with pytest.raises(
            ValueError, match="This model is on the device meta, in part or all of it, .* load its che"
        ):
            model.compress(config())


def test_devices_without_float64():
    model = build("llama", torch.float32)
    with pytest.raises(ValueError, match="Cannot slice on device='mps', which has no float64.*device='cpu'"):
        model.compress(SliceGPTConfig(sparsity=0.3, device="mps", dataset=calibration()))
    assert model.config.model_type == "llama"
