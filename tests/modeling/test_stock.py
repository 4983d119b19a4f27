"""Stock classes hold sliced models: which class holds a size, with which shapes, and that it computes the same."""

import json
import os
import subprocess
import sys

import pytest
import torch
from configurations import tiny_config
from exactness import confine_writers, with_float64_norms
from more_families import MORE
from sliced_models import model_of_one_width
from tiny import ENDS as TINY_ENDS
from tiny import HIDDEN, TINY, aligned, build, calibration, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.export import export_stock
from optimum_slicegpt.modeling.decoder import Decoder, empty_model
from optimum_slicegpt.modeling.families import FAMILIES, family_of, num_neurons
from optimum_slicegpt.modeling.stock import stock_class
from optimum_slicegpt.planning.settings import fits_stock
from optimum_slicegpt.slicing.skeleton import build_sliced
from optimum_slicegpt.slicing.stock_form import StockForm, balancing_gain


SIZES = (HIDDEN, 36, 33, 24, 17)
"""Multiples of the number of heads, 3 or 4, and others."""
VARIANTS = {name: (name, {}) for name in TINY if not FAMILIES[name.split("-")[0]].wide_entry}
VARIANTS |= {
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2-full": ("qwen2", {"use_sliding_window": False}),
    "phi-plain": ("phi", {"qk_layernorm": False}),
    "starcoder2-plain": ("starcoder2", {"use_bias": False}),
}
"""Name -> the tiny model, and what is changed in its configuration."""


def sizes_by_row(name):
    """Returns the sizes below the dense one that the family's own class holds, as its row says, and its type."""
    config = tiny_config(name)
    return {
        size: config.model_type
        for size in SIZES[1:]
        for found in family_of(config).narrower[:1]
        if size % found.multiple_of == 0 and not (found.by_heads and size % config.num_attention_heads)
    }


OWN = ("gpt_neox", "gpt_neox-sequential", "stablelm", "stablelm-parallel", "opt", "gpt2", "falcon", "falcon-two_norms")
NARROWER = {name: dict.fromkeys(SIZES[1:], name.split("-")[0]) for name in VARIANTS}
NARROWER |= {name: sizes_by_row(name) for name in MORE if name in VARIANTS}
NARROWER |= dict.fromkeys(("qwen2", "phi3-longrope", "phi", *OWN), {})
NARROWER |= {
    "llama": {36: "llama", 33: "mistral", 24: "llama", 17: "mistral"},
    "llama-biased": {36: "llama", 24: "llama"},
    "qwen2-full": {36: "llama", 24: "llama"},
    "mixtral": {24: "mixtral"},
    "qwen3_moe": {24: "qwen3_moe"},
}
"""Name -> the sizes below the dense one that a class holds, and the class's `model_type`."""
ENDS = {"untied": False, "tied": True}
EACH = [
    (name, ends) for name, (tiny, _) in VARIANTS.items() for ends, tied in ENDS.items() if (tiny, tied) in TINY_ENDS
]


def is_tied_with_layer_norms(name, tied):
    return tied and family_of(tiny_config(VARIANTS[name][0])).layer_norm


def classes(name, tied):
    """Returns the sizes that a class holds, and the class's `model_type`."""
    sizes = {HIDDEN: name.split("-")[0]}
    return sizes if is_tied_with_layer_norms(name, tied) else sizes | NARROWER[name]


def plan_for(config, size):
    """Returns the plan of a stock model of a size, with fewer neurons where that is possible."""
    family = family_of(config)
    width = size - (family.layer_norm and size < HIDDEN)
    return SlicePlan(
        HIDDEN,
        (width,) * family.num_sites(config),
        "narrow" if config.tie_word_embeddings else "sliced",
        shortcuts=False,
        neurons=None if family.keeps_neurons else 24,
        stock_size=size,
    )


HELD = [(name, ends, size) for name, ends in EACH for size in classes(name, ENDS[ends])]


@pytest.mark.parametrize(("name", "ends"), EACH)
def test_which_class_holds_a_size(name, ends):
    tiny, changes = VARIANTS[name]
    config = tiny_config(tiny, ENDS[ends], **changes)
    held = [size for size in range(1, HIDDEN + 1) if fits_stock(SliceGPTConfig(), config)(size)]
    expected = classes(name, ENDS[ends])
    assert [size for size in SIZES if size in held] == [size for size in SIZES if size in expected]
    found = {size: stock_class(family_of(config), config, size).model_type for size in expected}
    assert {size: model_type or name.split("-")[0] for size, model_type in found.items()} == expected


@pytest.mark.parametrize(("name", "ends", "size"), HELD)
def test_the_class_has_the_shapes_and_the_planned_size(name, ends, size):
    tiny, changes = VARIANTS[name]
    dense = empty_model(tiny_config(tiny, ENDS[ends], **changes))
    plan = plan_for(dense.config, size)
    stock = StockForm(Decoder(build_sliced(dense, plan)), size).model
    assert stock.config.model_type == classes(name, ENDS[ends])[size]
    assert stock.config.hidden_size == size and num_neurons(stock.config) == (
        plan.neurons or num_neurons(dense.config)
    )
    assert type(stock) is type(AutoModelForCausalLM.from_config(stock.config))
    own, found = empty_model(stock.config), dict(stock.named_parameters())
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in own.named_parameters()
    }
    assert stock.num_parameters() == plan.num_parameters(dense)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "ends", "size"), [case for case in HELD if not is_tied_with_layer_norms(case[0], ENDS[case[1]])]
)
def test_logits_equal(name, ends, size):
    tiny, changes = VARIANTS[name]
    changes = changes | {"tie_word_embeddings": ENDS[ends]}
    plan = plan_for(tiny_config(tiny, ENDS[ends], **changes), size)
    given = {"embeddings": plan.embeddings, "neurons": plan.neurons}
    model = with_float64_norms(model_of_one_width(tiny, plan.widths[0], overrides=changes, **given))
    decoder = Decoder(model)
    if decoder.family.layer_norm and size == HIDDEN:  # The stream of a real one has no mean.
        confine_writers(model, HIDDEN - 1)
    if ENDS[ends]:
        decoder.final_norm.weight.normal_()
    form = StockForm(decoder, size)
    form.settle()
    stock = with_float64_norms(form.model)
    bound = 1e-6 if decoder.family.single else 1e-10  # State spaces compute in float32.
    assert relative_error(stock(tokens()).logits, model(tokens()).logits) < bound


@torch.no_grad()
def test_a_narrower_qwen2_is_a_llama_with_biases():
    config = SliceGPTConfig(sparsity=0.25, dataset=calibration())
    model = build("qwen2", use_sliding_window=False).compress(config)
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.hidden_size == 36
    assert model.config.attention_bias and model.config.head_dim == 8
    for layer in model.model.layers:
        assert (layer.self_attn.q_proj.bias != 0).all() and (layer.self_attn.o_proj.bias == 0).all()


def test_a_llama_of_any_width_is_a_mistral_without_a_window():
    model = build("llama").compress(SliceGPTConfig(widths=[33] * 5, dataset=calibration()))
    assert type(model).__name__ == "MistralForCausalLM" and model.config.hidden_size == 33
    assert model.config.sliding_window is None and model.config.head_dim == 8


def test_a_class_that_derives_no_size_of_heads_is_told_where_it_is_what_others_derive():
    model = build("ministral").compress(SliceGPTConfig(widths=[32] * 5, dataset=calibration()))
    assert type(model).__name__ == "MinistralForCausalLM" and model.config.head_dim == 8


WITHOUT_THE_PACKAGE = """
import sys, torch
sys.modules["optimum_slicegpt"] = None
from transformers import AutoModelForCausalLM
root, *names = sys.argv[1:]
inputs = torch.load(root + "/inputs.pt")
for name in names:
    model = AutoModelForCausalLM.from_pretrained(f"{root}/{name}")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as `tiny.aligned` does
    torch.save(model(inputs).logits.detach(), f"{root}/{name}/logits.pt")
"""


def test_a_process_without_the_package_gives_the_same_bits(tmp_path):
    torch.save(tokens(), tmp_path / "inputs.pt")
    expected = {}
    for name, ends in EACH:
        (tiny, changes), tied = VARIANTS[name], ENDS[ends]
        dense = build(tiny, torch.float32, tie_word_embeddings=tied, **changes)
        size = {"parameter_reduction": 0.05}
        if family_of(dense.config).keeps_neurons:
            # By default experts are multiplied in groups, which takes rows of whole 16 bytes.
            size = {"sparsity": 1 / 6 if NARROWER[name] else 0}
        config = SliceGPTConfig(architecture="stock", dataset=calibration(), **size)
        stock, folder = dense.compress(config), tmp_path / f"{name}-{ends}"
        stock.save_pretrained(folder)
        expected[folder.name] = aligned(stock)(tokens()).logits
        assert not list(folder.glob("*.py"))
        saved = json.loads((folder / "config.json").read_text())
        assert saved["tie_word_embeddings"] == tied and "auto_map" not in saved
        assert saved["slicegpt"]["architecture"] == "stock" and saved["model_type"] == stock.config.model_type
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(tmp_path), *expected]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | threads, timeout=300)
    for name in expected:
        assert torch.equal(torch.load(tmp_path / name / "logits.pt"), expected[name]), name


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma", "nemotron", "phi3"])
def test_columns_are_balanced_and_nothing_is_rounded(name):
    model = model_of_one_width(name, 28, torch.bfloat16)
    decoder = Decoder(model)
    factors = torch.logspace(-3, 3, 28, base=2)
    for block in decoder.blocks():
        for reader in block.readers().values():
            reader.weight.mul_(factors)
    stock = export_stock(model)
    offset = decoder.family.gain_offset
    for ours, theirs in zip(decoder.blocks(), Decoder(stock).blocks(), strict=True):
        for (_, _, before), (_, norm, after) in zip(ours.norms(), theirs.norms(), strict=True):
            gain = norm.weight + offset
            assert torch.equal(gain.log2(), gain.log2().round()) and gain.max() > 1 > gain.min()
            for reader, source in zip(after.values(), before.values(), strict=True):
                spread, former = (each.weight.float().norm(dim=0).log().std() for each in (reader, source))
                assert spread < 0.7 * former
                if not decoder.family.layer_norm:
                    assert torch.equal(reader.weight * gain, source.weight)


def test_gains_that_balance_are_bounded():
    columns = torch.tensor([[0.0, 1e-30, 1.0, 1.0, 1e10]])
    assert balancing_gain([columns]).tolist() == [1 / 16, 1 / 16, 1 / 16, 1 / 16, 2]
