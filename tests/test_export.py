"""A model of a sliced class whose sites share one basis is also one of a stock class."""

import json
import os
import subprocess
import sys

import pytest
import torch
from configurations import BIASED, tiny_config
from more_families import MORE
from sliced_models import model_of_one_width, plan_of_one_width
from tiny import TINY, aligned, build, calibration, relative_error, tokens
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.export import check_exportable, export_stock
from optimum_slicegpt.modeling.decoder import empty_model
from optimum_slicegpt.modeling.families import FAMILIES, family_of
from optimum_slicegpt.planning.settings import fits_stock
from optimum_slicegpt.slicing.skeleton import build_sliced


OURS = {"widths", "original_hidden_size", "embedding_size", "shortcuts", "slicegpt", "auto_map"}
IN_A_FRESH_PROCESS = """
import sys, torch
sys.modules["optimum_slicegpt"] = None
from transformers import AutoModelForCausalLM
inputs = torch.load(sys.argv[1] + "/inputs.pt")
for name in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as `tiny.aligned` does
    torch.save(model(inputs).logits.detach(), f"{sys.argv[1]}/{name}/logits.pt")
"""

PHI = {"qk_layernorm": False}
"""With which Phi derives nothing any more."""
QWEN2 = {"use_sliding_window": False}
"""With which a Qwen2 is a Llama with biases."""


def held_width(name):
    """Returns a width that a class holds with what it adds for the mean, below the dense one where there is one."""
    config = tiny_config(name, False)
    fits = fits_stock(SliceGPTConfig(), config)
    return next(width for width in (28, 24, 27, 47, 48) if fits(width + family_of(config).layer_norm))


EXPORTED = [name for name in TINY if not FAMILIES[name.split("-")[0]].wide_entry]
WIDTHS = {name: held_width(name) for name in EXPORTED}


# The same function


@torch.no_grad()
@pytest.mark.parametrize("name", EXPORTED)
def test_logits_equal(name):
    model = model_of_one_width(name, WIDTHS[name])
    stock = export_stock(model)
    # Some norms compute in float32, whatever they are given.
    single = not family_of(model.config).layer_norm or name in ("olmo", "cohere")
    bound = 1e-5 if name in MORE else 1e-6 if single else 1e-10
    assert relative_error(stock(tokens()).logits, model(tokens()).logits) < bound
    assert type(stock) is type(build(name)) and type(stock.config) is type(build(name).config)
    size = WIDTHS[name] + family_of(model.config).layer_norm
    assert stock.config.hidden_size == stock.get_input_embeddings().weight.shape[1] == size


@torch.no_grad()
@pytest.mark.parametrize(
    "name, width, overrides",
    [
        ("phi", 30, PHI),  # the one with a biased head
        ("starcoder2", 30, {"use_bias": False}),  # every bias goes through a norm
        ("mistral", 31, None),
        ("nemotron", 48, None),  # LayerNorm wants a dimension more than the dense model had
        ("llama", 48, None),  # nothing but neurons is sliced
        ("llama", 28, {"attention_bias": True, "mlp_bias": True}),
        ("phi3-longrope", 48, None),
    ],
)
def test_logits_equal_in_variants(name, width, overrides):
    model = model_of_one_width(name, width, overrides=overrides)
    stock = export_stock(model)
    assert relative_error(stock(tokens()).logits, model(tokens()).logits) < 1e-6
    assert stock.config.intermediate_size == 24


@torch.no_grad()
@pytest.mark.parametrize(
    "name, width, overrides, architecture",
    [
        ("llama", 28, {}, "LlamaForCausalLM"),
        ("llama", 31, {}, "MistralForCausalLM"),  # no multiple of 4 heads
        ("qwen2", 28, QWEN2, "LlamaForCausalLM"),  # its clients would divide the width by the heads
        ("qwen2", 48, QWEN2, "Qwen2ForCausalLM"),
    ],
)
def test_widths_have_the_class_that_holds_them(name, width, overrides, architecture):
    model = model_of_one_width(name, width, overrides=overrides)
    stock = export_stock(model)
    assert (type(stock).__name__, stock.config.head_dim) == (architecture, 8)
    assert relative_error(stock(tokens()).logits, model(tokens()).logits) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "granite"])
def test_a_matrix_that_is_shared_and_narrow_stays_so(name):
    model = model_of_one_width(name, 28, overrides={"tie_word_embeddings": True}, embeddings="narrow")
    model.model.norm.weight.copy_(torch.randn(28))  # gains of both signs
    stock = export_stock(model)
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    assert relative_error(stock(tokens()).logits, model(tokens()).logits) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", EXPORTED)
def test_greedy_generation_equals(name):
    model, ids = model_of_one_width(name, WIDTHS[name]), tokens(length=6)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(
        export_stock(model).generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None), expected
    )


def test_a_fresh_process_without_the_package_gives_the_same_bits(tmp_path):
    torch.save(tokens(), tmp_path / "inputs.pt")
    expected = {}
    for name in EXPORTED:
        model = model_of_one_width(name, WIDTHS[name], torch.float32)
        export_stock(model).save_pretrained(tmp_path / name)
        # Loaded again, it chooses anew how to multiply experts.
        expected[name] = aligned(AutoModelForCausalLM.from_pretrained(tmp_path / name))(tokens()).logits
        assert relative_error(expected[name], model(tokens()).logits) < 2e-5, name
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path), *EXPORTED]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | threads, timeout=120)
    for name in EXPORTED:
        assert torch.equal(torch.load(tmp_path / name / "logits.pt"), expected[name]), name
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["model_type"] == name.split("-")[0] and config["tie_word_embeddings"] is False
        assert not OURS & config.keys() and "sliced" not in json.dumps(config).lower()
        assert {file.name for file in (tmp_path / name).iterdir()} == {
            *("config.json", "generation_config.json", "model.safetensors", "logits.pt")
        }


def test_norms_have_no_gain_but_one():
    for name in ("llama", "gemma", "nemotron", "cohere"):
        stock = export_stock(model_of_one_width(name, WIDTHS[name]))
        offset = family_of(stock.config).gain_offset
        norms = [module for key, module in stock.named_modules() if key.endswith(("layernorm", "model.norm"))]
        assert len(norms) > 2 and all((norm.weight + offset == 1).all() for norm in norms)


@torch.no_grad()
def test_the_sliced_model_and_the_random_state_are_left_alone():
    model = model_of_one_width("nemotron", 28, torch.bfloat16)
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    stock = export_stock(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not stock.training and stock.dtype == torch.bfloat16
    for parameter in stock.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {value.dtype for value in stock.state_dict().values()} == {torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma", "starcoder2"])
def test_what_compress_makes(name):
    config = SliceGPTConfig(
        architecture="sliced",
        rotation="shared",
        refit=True,
        sparsity=0.4,
        mlp_sparsity=0.3,
        round_to=4,
        embeddings="sliced",
        dataset=calibration(),
    )
    model = build(name).compress(config)
    assert model.config.hidden_size == 28
    stock = export_stock(model)
    assert relative_error(stock(tokens()).logits, model(tokens()).logits) < 1e-6
    assert stock.config.slicegpt == model.config.slicegpt | {"architecture": "stock"}
    assert model.config.slicegpt["architecture"] == "sliced"


def test_a_record_of_an_earlier_version_gets_the_sizes_that_it_lacks():
    model = model_of_one_width("llama", 28)
    model.config.slicegpt = {"sparsity": 0.4}
    sizes = {"hidden_size": 48, "widths": [28] * 5}
    assert export_stock(model).config.slicegpt == sizes | {"sparsity": 0.4, "architecture": "stock"}


# What no stock class can hold


REFUSED_BY_WIDTH = [
    (
        "llama",
        30,
        BIASED,
        r"this sliced_llama model of width 30: no class of transformers holds hidden_size=30. Slice to a width that "
        r"fits; the nearest: 28, 32\.$",
    ),
    ("qwen2", 30, QWEN2, r"of width 30: .* hidden_size=30\. .* the nearest: 28, 32\.$"),
    ("qwen2", 28, {}, r"of width 28: .* hidden_size=28\. .* the nearest: 48\.$"),  # its window slides
    ("phi3-longrope", 36, {}, r"of width 36: .* hidden_size=36\. .* the nearest: 48\.$"),
    ("gpt2", 29, {}, r"of width 29: .* hidden_size=30\. .* the nearest: 47\.$"),
    ("opt", 29, {}, r"of width 29: .* hidden_size=30\. .* the nearest: 47\.$"),
    ("phi", 29, {}, r"of width 29: .* hidden_size=30\. .* the nearest: 47\.$"),
    ("gpt_neox", 28, {}, r"of width 28: .* hidden_size=29\. .* the nearest: 47\.$"),
    ("stablelm", 29, {}, r"of width 29: .* hidden_size=30\. .* the nearest: 47\.$"),
    ("falcon", 35, {}, r"of width 35: .* hidden_size=36\. .* the nearest: 47\.$"),
]
REFUSED_BY_FORM = [
    ({"shortcuts": True}, r"this sliced_llama model: shortcuts=True, .*rotation='shared'"),
    ({"embeddings": "tied"}, r"embedding_size=48, embeddings and head keep .* embeddings='auto'"),
]


@pytest.mark.parametrize("name, width, overrides, message", REFUSED_BY_WIDTH)
def test_refusals_of_widths(name, width, overrides, message):
    with pytest.raises(ValueError, match=message):
        export_stock(model_of_one_width(name, width, overrides=overrides, neurons=None))


@pytest.mark.parametrize("changes, message", REFUSED_BY_FORM)
def test_refusals_of_forms(changes, message):
    overrides = {"tie_word_embeddings": "embeddings" in changes}
    with pytest.raises(ValueError, match=message):
        export_stock(model_of_one_width("llama", 48, overrides=overrides, neurons=None, **changes))


def test_neurons_that_differ_from_layer_to_layer_are_refused():
    config = SliceGPTConfig(schedule="energy", mlp_sparsity=0.4, sparsity=0.25, dataset=calibration())
    model = build("llama").compress(config)
    with pytest.raises(ValueError, match="intermediate_sizes holds .* to .*SliceGPTConfig.schedule='uniform'"):
        export_stock(model)


@pytest.mark.parametrize("name, width, overrides", [(name, *more) for name, *more, message in REFUSED_BY_WIDTH])
def test_a_plan_says_so_beforehand(name, width, overrides):
    dense, plan = plan_of_one_width(name, width, overrides=overrides)
    size = width + family_of(dense.config).layer_norm
    message = (
        f"architecture='stock': no class of transformers holds a .* of hidden size {size}; the nearest that fit: "
    )
    with pytest.raises(ValueError, match=message):
        SlicePlan.from_config(SliceGPTConfig(architecture="stock", widths=list(plan.widths)), dense.config)


def test_smollm2_of_a_width_that_nine_heads_do_not_divide_is_a_mistral():
    sizes = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
    smollm2 = empty_model(LlamaConfig(**sizes, num_hidden_layers=1))
    for width, architecture in ((495, "LlamaForCausalLM"), (496, "MistralForCausalLM")):
        sliced = build_sliced(smollm2, SlicePlan(576, (width,) * 3, shortcuts=False))
        check_exportable(sliced)
        assert type(export_stock(sliced)).__name__ == architecture


@pytest.mark.parametrize("name", EXPORTED)
def test_a_plan_of_what_can_be_exported_has_a_stock_class(name):
    dense, plan = plan_of_one_width(name, WIDTHS[name])
    width = 48 if WIDTHS[name] == 47 else WIDTHS[name]  # the full width needs no dimension for the mean
    plan = SlicePlan.from_config(SliceGPTConfig(architecture="stock", widths=[width] * len(plan.widths)), dense.config)
    assert plan.stock_size == width + (family_of(dense.config).layer_norm and width < 48)


def test_models_that_are_not_sliced_causal_language_models(tmp_path):
    with pytest.raises(ValueError, match=r"model_type='llama': it is no sliced model.*architecture='sliced'"):
        export_stock(build("llama"))
    sliced = build("llama").compress(SliceGPTConfig(sparsity=0.25, dataset=calibration()))
    with pytest.raises(ValueError, match=r"model_type='llama': it is of a stock class already.*architecture='sliced'"):
        export_stock(sliced)
    model_of_one_width("llama", 28).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Cannot export a SlicedLlamaModel: .* AutoModelForCausalLM"):
        check_exportable(AutoModel.from_pretrained(tmp_path))
