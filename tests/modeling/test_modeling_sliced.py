"""A sliced model is an ordinary Hugging Face model: saved, loaded, generated with, trained."""

import itertools
import json
import pickle

import pytest
import torch
from forking import run_program
from paths import TRAVELLING
from sliced_models import tapering_model
from tiny import HIDDEN, TINY, aligned, build, calibration, relative_error, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.modeling.configuration_sliced import SlicedLlamaConfig
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.modeling.weights import body_of


IN_A_FRESH_PROCESS = """
import sys, torch, optimum_slicegpt
from tiny import aligned
from transformers import AutoModelForCausalLM
threads, folder, *names = sys.argv[1:]
torch.set_num_threads(int(threads))  # on which rounding depends
inputs = torch.load(folder + "/inputs.pt")
for name in names:
    model = aligned(AutoModelForCausalLM.from_pretrained(f"{folder}/{name}"))
    torch.save(model(inputs).logits.detach(), f"{folder}/{name}/logits.pt")
"""


def shared(name, dtype=torch.float32):
    """Slices a tiny model without shortcuts, whose MLPs are smaller where the family allows that."""
    dense = build(name, dtype)
    neurons = None if family_of(dense.config).keeps_neurons else 0.4
    settings = {"architecture": "sliced", "sparsity": 1 / 3, "mlp_sparsity": neurons}
    return dense.compress(SliceGPTConfig(**settings, dataset=calibration()))


FORMS = {"per_block": tapering_model, "shared": shared}


def test_fresh_process_gives_the_same_bits(tmp_path):
    torch.save(tokens(), tmp_path / "inputs.pt")
    expected = {}
    for name, form in itertools.product(TINY, FORMS):
        model = FORMS[form](name)
        model.save_pretrained(tmp_path / f"{name}-{form}")
        expected[f"{name}-{form}"] = model(tokens()).logits
    run_program("-c", IN_A_FRESH_PROCESS, torch.get_num_threads(), tmp_path, *expected)
    for name in expected:
        assert torch.equal(torch.load(tmp_path / name / "logits.pt"), expected[name]), name
        assert {file.name for file in (tmp_path / name).iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "logits.pt",
            *TRAVELLING,
        }


def test_configuration_says_what_the_architecture_is(tmp_path):
    tapering_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "sliced_llama" and config["architectures"] == ["SlicedLlamaForCausalLM"]
    assert (config["hidden_size"], config["original_hidden_size"], config["head_dim"]) == (28, 48, 8)
    assert config["widths"] == [44, 40, 36, 32, 28]
    assert config["tie_word_embeddings"] is False
    assert type(AutoConfig.from_pretrained(tmp_path)) is SlicedLlamaConfig


@pytest.mark.parametrize("name", TINY)
def test_base_model_loads_alone(name, tmp_path):
    model = tapering_model(name)
    model.save_pretrained(tmp_path)
    base, family = aligned(AutoModel.from_pretrained(tmp_path)), family_of(model.config)
    expected = body_of(model, family)(tokens()).last_hidden_state
    assert expected.shape[-1] == base.config.hidden_size == (HIDDEN if family.wide_entry else 28)
    assert torch.equal(base(tokens()).last_hidden_state, expected)


def test_sharded_checkpoint(tmp_path):
    model = tapering_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = aligned(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_tokenizer_beside_the_model(tmp_path, tiny_tokenizer):
    tapering_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("w5 w7")["input_ids"] == tiny_tokenizer("w5 w7")["input_ids"]


@torch.no_grad()
@pytest.mark.parametrize(("form", "cache"), [("per_block", "dynamic"), ("per_block", "static"), ("shared", "dynamic")])
@pytest.mark.parametrize("name", TINY)
def test_cached_generation_equals_the_argmax_of_full_forwards(name, form, cache):
    model, ids = FORMS[form](name, torch.float64), tokens(length=6)
    kwargs = {"cache_implementation": "static"} if cache == "static" else {}
    generated = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, **kwargs)
    for _ in range(8):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "opt", "phi"])
def test_left_padding_changes_nothing(name):
    model, ids = tapering_model(name, torch.float64), tokens(1, 10)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    mask = (torch.arange(14) >= 4).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    assert relative_error(logits, model(ids).logits) < 1e-6


@pytest.mark.parametrize("name", TINY)
def test_hidden_states_and_kept_logits(name):
    model = tapering_model(name)
    outputs = model(tokens(), output_hidden_states=True, logits_to_keep=1)
    assert outputs.logits.shape == (2, 1, 97)
    family = family_of(model.config)
    widths = model.config.widths[:: len(family.blocks)]
    if family.wide_entry:
        widths[0] = widths[-1] = HIDDEN
    # Mamba's own begin behind the first layer, and end behind the norm.
    assert [state.shape[-1] for state in outputs.hidden_states] in (widths, [*widths[1:], widths[-1]])


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_attention_weights(name):
    dense, model = build(name, torch.float32), tapering_model(name)
    expected, seen = (
        each(tokens(), output_attentions=True).get("attentions") or () for each in (eagerly(dense), eagerly(model))
    )
    assert [weights.shape for weights in seen] == [weights.shape for weights in expected]
    if any("sink" in key for key, _ in model.named_parameters()):  # They take the rest of the attention.
        return
    for weights in seen:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def eagerly(model):
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", TINY)
def test_gradient_checkpointing_gives_the_same_gradients(name, reentrant):
    def gradients(model):
        model.train()
        model(tokens(), labels=tokens()).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    model = without_dropout(tapering_model(name, torch.float64))
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for actual, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for key, value in list(vars(module).items()):
            if key.endswith("dropout") and isinstance(value, float):
                setattr(module, key, 0.0)
    return model


@torch.no_grad()
def test_attention_implementation_can_be_chosen():
    model = tapering_model("llama")
    expected = model(tokens()).logits
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert relative_error(model(tokens()).logits, expected) < 1e-5


def test_pickle():
    model = tapering_model("llama")
    assert torch.equal(pickle.loads(pickle.dumps(model))(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("name", TINY)
def test_built_from_its_configuration_alone(name):
    model, expected = AutoModelForCausalLM.from_config(tapering_model(name).config), tapering_model(name).state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }
    norms = [module for module in model.modules() if type(module) is torch.nn.RMSNorm and module.elementwise_affine]
    assert len(norms) > 2 and all((norm.weight == 1).all() for norm in norms)
    assert 0 < model(tokens()).logits.abs().max() < 100


def test_configuration_without_widths_is_unsliced():
    config = SlicedLlamaConfig(**TINY["llama"])
    assert config.widths is None
    assert AutoModelForCausalLM.from_config(config)(tokens()).logits.shape == (2, 24, 97)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"widths": [8, 8, 8]}, "widths has 3 entries; this model has 5 sites"),
        ({"widths": [8, 8, 8, 49, 48]}, "every width must lie between 1 and the original hidden size, 48"),
        ({"widths": [8, 8, 8, 8, 8]}, "hidden_size=48; it must equal the width of the last hidden state, 8"),
    ],
)
def test_configurations_that_contradict_themselves(kwargs, message):
    with pytest.raises(Exception, match=message):
        SlicedLlamaConfig(**TINY["llama"], original_hidden_size=48, **kwargs)


def test_embeddings_can_be_resized(tmp_path):
    model = tapering_model("llama")
    model.resize_token_embeddings(101)
    model.save_pretrained(tmp_path)
    loaded = aligned(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert loaded(tokens()).logits.shape[-1] == 101
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_trainer_lowers_the_loss_and_saves(tmp_path):
    model = tapering_model("llama")
    data = [{"input_ids": row, "labels": row} for row in tokens(8)]
    before = model(tokens(8), labels=tokens(8)).loss.item()
    arguments = TrainingArguments(
        tmp_path, num_train_epochs=10, learning_rate=1e-3, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    trainer.save_model(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded(tokens(8), labels=tokens(8)).loss.item() < before - 0.1
