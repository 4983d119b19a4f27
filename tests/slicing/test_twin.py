"""Models that are not quite what their configuration or their class says: taken as what they are, or refused."""

import json

import pytest
import torch
from tiny import TINY, build, calibration, relative_error, tokens
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3ForCausalLM

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.modeling.checks import check_sliceable
from optimum_slicegpt.slicing.twin import stock_twin
from optimum_slicegpt.streaming import StreamedRun


NOTHING = SliceGPTConfig(parameter_reduction=0.0, refit=False, dataset=calibration())


# Classes


class OwnConfig(LlamaConfig):
    """A configuration class of one's own."""


class OwnModel(LlamaForCausalLM):
    """A model class of one's own."""

    config_class = OwnConfig


class Loud(LlamaForCausalLM):
    """A model class that computes something else."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output


def of_class(model_class, config_class=LlamaConfig):
    model = build("llama")
    own = model_class(config_class(**TINY["llama"])).double().eval()
    own.load_state_dict(model.state_dict())
    return own


@pytest.mark.parametrize(
    "classes", [(LlamaForCausalLM, OwnConfig), (OwnModel, OwnConfig), (OwnModel, LlamaConfig)], ids=str
)
def test_classes_of_ones_own(classes, tmp_path):
    model = of_class(*classes)
    before = model(tokens()).logits
    check_sliceable(model)
    model.compress(NOTHING)
    assert (type(model), type(model.config)) == (LlamaForCausalLM, LlamaConfig)
    assert relative_error(model(tokens()).logits, before) < 1e-6
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM


def test_a_class_that_computes_something_else():
    model = of_class(Loud)
    with pytest.raises(ValueError, match=r"This .*\.Loud computes something else than transformers' own LlamaForCaus"):
        model.compress(NOTHING)
    assert type(model) is Loud


CODE = {
    "configuration_own.py": "from transformers import Phi3Config as Stock\n\n\nclass Phi3Config(Stock):\n    pass\n",
    "modeling_own.py": "from transformers import Phi3ForCausalLM as Stock\nfrom .configuration_own import Phi3Config\n"
    "class Phi3ForCausalLM(Stock):\n    config_class = Phi3Config\n",
}


def test_classes_of_remote_code(tmp_path, home):
    folder = tmp_path / "phi3"
    build("phi3").save_pretrained(folder)
    for name, code in CODE.items():
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_own.Phi3Config",
        "AutoModelForCausalLM": "modeling_own.Phi3ForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model) is not Phi3ForCausalLM
    before = model(tokens()).logits
    with pytest.raises(
        ValueError, match=r"Streaming takes transformers' own classes, and this one is of transf.*_own;"
    ):
        StreamedRun(folder, tmp_path / "out", NOTHING, trust_remote_code=True)
    model.compress(NOTHING)
    assert type(model) is Phi3ForCausalLM and not hasattr(model.config, "auto_map")
    assert relative_error(model(tokens()).logits, before) < 1e-6


# What is put on a model


def steered(model):
    model.model.layers[0].register_forward_hook(lambda module, given, output: output + 1)


def scaled_input(model):
    model.model.layers[1].mlp.register_forward_pre_hook(lambda module, given: (2 * given[0],))


def patched(model):
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda stream, forward=mlp.forward: forward(stream) / 2


def other_activation(model):
    class Squared(nn.Module):
        def forward(self, values):
            return values.relu().square()

    model.model.layers[0].mlp.act_fn = Squared()


@pytest.mark.parametrize("change", [steered, scaled_input, patched, other_activation])
def test_what_changes_the_computation_is_refused(change):
    model = build("llama")
    change(model)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM computes something else than transformers' own LlamaForC"):
        model.compress(NOTHING)


def test_hooks_that_only_read_are_accepted():
    model = build("llama")
    model.enable_input_require_grads()
    model.model.norm.register_forward_hook(lambda module, given, output: None)
    before = model(tokens()).logits
    assert stock_twin(model) is model
    assert relative_error(model.compress(NOTHING)(tokens()).logits, before) < 1e-6


# Ties


def head_of_its_own():
    """What merging adapters leaves behind where embedding and head were trained."""
    model = build("llama", tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight + 0.5 * torch.randn_like(model.lm_head.weight))
    return model, False


def shared_head():
    model = build("llama", tie_word_embeddings=False)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model, True


def equal_head():
    """What copying tensors one by one leaves behind."""
    model = build("llama", tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model, True


def head_of_the_same_storage():
    model, _ = shared_head()
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach())
    return model, True


@pytest.mark.parametrize("make", [head_of_its_own, shared_head, equal_head, head_of_the_same_storage])
def test_ties_are_those_of_the_tensors(make):
    model, tied = make()
    before = model(tokens()).logits
    assert stock_twin(model).config.tie_word_embeddings == tied
    parameters = stock_twin(model).num_parameters()
    sliced = model.compress(SliceGPTConfig(parameter_reduction=0.2, round_to=1, dataset=calibration()))
    assert sliced.config.tie_word_embeddings == tied
    assert 0.2 <= 1 - sliced.num_parameters() / parameters < 0.22
    model, _ = make()
    assert relative_error(model.compress(NOTHING)(tokens()).logits, before) < 1e-6


# Modules


def without_a_layer(model):
    del model.model.layers[1]


def narrower_mlp(model):
    mlp = model.model.layers[1].mlp
    for layer in (mlp.gate_proj, mlp.up_proj):
        layer.weight = nn.Parameter(layer.weight[:32].clone())
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :32].clone())


def low_rank(model):
    model.model.layers[1].mlp.down_proj = nn.Sequential(nn.Linear(40, 20, bias=False), nn.Linear(20, 48, bias=False))


def larger_table(model):
    model.model.embed_tokens = nn.Embedding(100, 48)


def more_biases(model):
    model.model.layers[0].mlp.down_proj.bias = nn.Parameter(torch.ones(48))


def one_mlp_for_two_layers(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


def one_more_layer(model):
    model.model.layers.append(model.model.layers[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            without_a_layer,
            r"in 9 parameters. model.layers.1.self_attn.q_proj.weight: absent in the model, \(32, 48\) by",
        ),
        (
            narrower_mlp,
            r"in 3 parameters. model.layers.1.mlp.gate_proj.weight: \(32, 48\) in the model, \(40, 48\) by",
        ),
        (low_rank, "in 3 parameters. model.layers.1.mlp.down_proj.weight: absent in the model"),
        (larger_table, r"in 1 parameters. model.embed_tokens.weight: \(100, 48\) in the model, \(97, 48\) by"),
        (more_biases, r"in 1 parameters. model.layers.0.mlp.down_proj.bias: \(48,\) in the model, absent by the conf"),
        (
            one_mlp_for_two_layers,
            r"in 3 parameters. model.layers.1.mlp.gate_proj.weight: that of model.layers.0.* in the model, \(40, 48\)",
        ),
        (
            one_more_layer,
            "in 9 parameters. model.layers.2.self_attn.q_proj.weight: that of .* in the model, absent by",
        ),
    ],
)
def test_modules_unlike_the_configuration(change, message):
    model = build("llama")
    change(model)
    with pytest.raises(ValueError, match="This model is not what its configuration says, " + message):
        check_sliceable(model)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "opt", "falcon", "qwen3"])
def test_models_like_their_configuration_are_their_own_twins(name):
    model = build(name)
    model.resize_token_embeddings(101)
    check_sliceable(model)
    assert stock_twin(model) is model


# Quantized, once


def marked(model):
    """What loading a quantized file into plain numbers leaves behind."""
    model.hf_quantizer, model.is_quantized, model.quantization_method = object(), True, "gguf"
    model.config.quantization_config = {"quant_method": "gguf"}
    return model


@pytest.mark.parametrize("name", ["llama", "dots1"])  # The second one's routers have buffers that are saved.
def test_plain_numbers_from_a_quantized_file(tmp_path, name):
    model = marked(build(name))
    before = model(tokens()).logits
    model.compress(NOTHING)
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.config, "quantization_config")
    assert relative_error(model(tokens()).logits, before) < 1e-6
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["int8", "float8", "subclass"])
def test_numbers_that_are_not_plain(kind):
    model = marked(build("llama"))
    weight = model.model.layers[0].self_attn.q_proj.weight.data
    if kind == "subclass":
        weight = weight.as_subclass(type("Packed", (torch.Tensor,), {}))
    else:
        weight = weight.to(torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    model.model.layers[0].self_attn.q_proj.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match="This model is quantized; slice the full-precision model first"):
        check_sliceable(model)
