"""`optimum-cli slicegpt inspect`, and what it prints: told from `config.json` alone."""

import json

import pytest
import torch
from command_line import fails, run
from configurations import SMOL, tiny_config
from tiny import ENDS, build, calibration
from transformers import OpenAIGPTConfig

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.planning.inspection import inspect_dense
from optimum_slicegpt.planning.solver import TOLERANCE
from optimum_slicegpt.slicing.skeleton import build_sliced
from optimum_slicegpt.slicing.stock_form import StockForm


@pytest.fixture
def smol(tmp_path):
    """Returns a folder that holds a configuration and nothing else."""
    SMOL.save_pretrained(tmp_path / "smol")
    return tmp_path / "smol"


def inspect(model_config, *, sparsities=(), reductions=(), dtype="auto", round_to=8):
    return inspect_dense(model_config, sparsities=sparsities, reductions=reductions, dtype=dtype, round_to=round_to)


NO_MATRICES = ("embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "word_embeddings", "embeddings")
NO_MATRICES += ("q_norm", "k_norm", "bias", "conv", "conv1d", "conv_1d", "A_log", "gate_weight")
"""Tables, gains of heads, convolutions, recurrences."""


def products(model):
    """Counts the multiplications of a token with the matrices of a model, one by one."""
    active, total = family_of(model.config).active_key, 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim > 1 and not name.removesuffix(".weight").endswith(NO_MATRICES):
            share = getattr(model.config, active) / parameter.shape[0] if parameter.ndim == 3 else 1
            total += round(parameter.numel() * share)
    return total


# What is found


@pytest.mark.parametrize(("name", "tied"), dict.fromkeys([*ENDS, ("youtu", False), ("gpt_oss", False)]))
def test_figures_are_those_of_the_models(name, tied):
    config = tiny_config(name, tied)
    model = build(name, tie_word_embeddings=tied)
    found = inspect(config, sparsities=[0.25], reductions=[0.3])
    assert found.dense.parameters == model.num_parameters()
    assert found.dense.flops_per_token == 2 * products(model)
    assert found.neurons == (None if family_of(config).keeps_neurons else 40)
    assert len(found.sliced) == (10 if tied and not family_of(config).wide_entry else 4)
    for each in found.sliced:
        shortcuts = each.rotation == "per_block"
        if each.error and family_of(config).moe and shortcuts:
            assert "out of reach" in each.error  # Shortcuts of tiny models are as large as what goes.
            continue
        if each.error:
            assert each.embeddings == "narrow" and "a LayerNorm subtracts a mean" in each.error
            continue
        plan = SlicePlan(48, tuple(each.widths), each.embeddings, shortcuts, each.neurons, each.stock_size)
        sliced = build_sliced(model, plan)
        if each.stock_size is not None:
            sliced = StockForm(Decoder(sliced), each.stock_size).model
        assert each.cost.parameters == sliced.num_parameters()
        assert each.change == sliced.num_parameters() / model.num_parameters() - 1
        assert each.cost.flops_per_token == 2 * products(sliced)


def test_every_method_comes_with_every_size():
    found = inspect(SMOL, sparsities=[0.1, 0.25], reductions=[0.25])
    seen = [(each.rotation, each.embeddings, each.sparsity, each.parameter_reduction) for each in found.sliced]
    assert seen == [
        (rotation, embeddings, *size)
        for rotation, choices in (("per_block", ("tied", "sliced")), ("shared", ("narrow", "tied", "sliced")))
        for embeddings in choices
        for size in ((0.1, None), (0.25, None), (None, 0.25))
    ]
    for each in found.sliced:
        assert each.parameter_reduction is None or abs(each.change + 0.25) <= TOLERANCE
        assert (each.neurons is None) == (each.parameter_reduction is None)


def test_widths_are_those_that_compress_takes():
    (each, _) = inspect(tiny_config("llama"), sparsities=[0.25], round_to=5).sliced
    assert each.widths == [35, 35, 35, 35, 48]


def test_bytes_are_counted_in_a_dtype():
    for dtype, size in {"auto": 4, "float64": 8, "bfloat16": 2}.items():
        found = inspect(tiny_config("llama"), sparsities=[0.25], dtype=dtype)
        assert found.dense.bytes == size * found.dense.parameters
        assert all(each.cost.bytes == size * each.cost.parameters for each in found.sliced)
    stored = inspect(tiny_config("llama", dtype=torch.float16))
    assert (stored.dtype, stored.dense.bytes) == ("float16", 2 * stored.dense.parameters)


def test_sizes_that_a_method_cannot_reach_do_not_hide_the_others():
    found = inspect(SMOL, reductions=[0.85])
    assert [each.error is None for each in found.sliced] == [False] * 2 + [True, False, True]
    assert "out of reach" in found.sliced[0].error and found.sliced[0].cost is None


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        (SMOL, {"sparsities": [1.5]}, "sparsity=1.5; give the share"),
        (SMOL, {"reductions": [-1]}, "parameter_reduction=-1; give the share"),
        (SMOL, {"sparsities": [0.1], "round_to": 0}, "round_to=0; give a positive integer"),
        (OpenAIGPTConfig(), {}, "Cannot slice model_type='openai-gpt'"),
    ],
)
def test_what_cannot_be_is_refused(config, kwargs, message):
    with pytest.raises(ValueError, match=message):
        inspect(config, **kwargs)


# What is printed


def test_the_table(smol, capsys):
    run("inspect", "--model", smol, "--parameter-reduction", 0.25, "--round-to", 8)
    header, columns, dense, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("llama: hidden size 576, 1,536 neurons in each MLP; float32.")
    assert "attention scores left out" in header
    assert columns.split()[:3] == ["rotation", "embeddings", "asked"]
    assert dense.split() == ["dense", "-", "-", "576", "1,536", "134,515,008", "-", "538.1", "MB", "0.269"]
    assert len(rows) == (2 + 3) * 5
    row = rows[2].split()
    assert row == "per_block tied sparsity 0.25 432 1,536 120,025,728 -10.8% 480.1 MB 0.240".split()
    assert rows[4].split()[:5] == ["per_block", "tied", "parameter", "reduction", "0.25"]


def test_experts_and_sizes_out_of_reach_in_the_table(tmp_path, capsys):
    tiny_config("mixtral").save_pretrained(tmp_path)
    run("inspect", "--model", tmp_path, "--sparsity", "--parameter-reduction", 0.98)
    header, _, _, per_block, shared, error = capsys.readouterr().out.splitlines()
    assert "hidden size 48, experts; float32" in header
    assert per_block.split() == ["per_block", "sliced", "parameter", "reduction", "0.98", *"-" * 6]
    assert shared.split()[:7] == ["shared", "sliced", "parameter", "reduction", "0.98", "1", "-"]
    assert error.startswith("parameter_reduction=0.98 is out of reach")


def test_json(smol, capsys):
    run("inspect", "--model", smol, "--sparsity", 0.3, "--dtype", "bfloat16", "--round-to", 16, "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["model_type"], report["dtype"]) == (str(smol), "llama", "bfloat16")
    assert report["dense"]["bytes"] == 2 * 134515008
    assert [each["widths"][0] for each in report["sliced"]] == [400] * 5
    assert report["sliced"][0]["cost"]["parameters"] == 112567040


def test_a_sliced_checkpoint_tells_how_it_was_made(tmp_path, capsys):
    model = build("llama", torch.float32).compress(SliceGPTConfig(sparsity=0.3, dataset=calibration()))
    model.config.save_pretrained(tmp_path)
    run("inspect", "--model", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("widths: 32") for line in lines)
    assert {"model type: llama", "sparsity: 0.3", "rotation: shared", "architecture: stock"} <= set(lines)
    assert f"parameters after: {model.num_parameters():,}" in lines
    first = lines.index("calibration:")
    assert sorted(lines[first + 1 : first + 4]) == ["  groups: 144", "  source: tokens", "  tokens: 144"]
    run("inspect", "--model", tmp_path, "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["widths"], report["slicegpt"]) == ([32] * 5, model.config.slicegpt)


def test_errors_are_told_in_a_line(tmp_path, capsys):
    OpenAIGPTConfig().save_pretrained(tmp_path)
    assert "Cannot slice model_type='openai-gpt'" in fails(capsys, "inspect", "--model", tmp_path)
    assert "missing" in fails(capsys, "inspect", "--model", tmp_path / "missing")
