"""Mixtures of experts: one tensor holds them all, and they write as many dimensions as they read."""

import pytest
import torch
from more_families import MORE
from safetensors.torch import load_file
from sliced_models import model_of_one_width, tapering_model
from tiny import TINY, build, calibration, differing_widths, paper, relative_error, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import family_of


EXPERTS = [name for name in TINY if family_of(build(name).config).moe]


def test_routers_that_their_class_does_not_initialise_are_finite(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        model = model_of_one_width("qwen3_next", 24)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("orientation", ["pca", "random"])
def test_a_single_expert_is_sliced_as_an_mlp(orientation):
    """Every expert gets weight one, so this is Llama, whose MLP needs no zeros behind the stream."""
    mixture = build("mixtral", num_local_experts=1, num_experts_per_tok=1)
    same = {key: getattr(mixture.config, key) for key in ("rms_norm_eps", "rope_parameters")}
    llama = build("llama", **same)
    weights = mixture.state_dict()
    for key in [key for key in weights if ".mlp." in key]:
        value = weights.pop(key)
        prefix = key.split(".mlp.")[0]
        if key.endswith("gate_up_proj"):
            gate, up = value[0].chunk(2)
            weights |= {f"{prefix}.mlp.gate_proj.weight": gate, f"{prefix}.mlp.up_proj.weight": up}
        elif key.endswith("down_proj"):
            weights[f"{prefix}.mlp.down_proj.weight"] = value[0]
    llama.load_state_dict(weights, strict=True)
    assert relative_error(mixture(tokens()).logits, llama(tokens()).logits) < 1e-6

    config = paper(widths=[44, 36, 36, 28, 28], orientation=orientation, dataset=calibration())
    energies = [model.compress(config).config.slicegpt["energy_kept"] for model in (mixture, llama)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-5) and max(energies[0]) < 1
    assert relative_error(mixture(tokens()).logits, llama(tokens()).logits) < 1e-5


@pytest.mark.parametrize("name", EXPERTS)
def test_published_checkpoints_hold_experts_one_by_one(name, tmp_path):
    """transformers stacks them as it loads the dense model. A sliced checkpoint holds the stack."""
    dense = build(name, torch.float32)
    dense.save_pretrained(tmp_path / "dense")
    one_by_one = any(".experts.0." in key for key in load_file(tmp_path / "dense" / "model.safetensors"))
    assert one_by_one or name in MORE  # Some are published in a stack.
    config = paper(sparsity=0.3, dataset=calibration())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    model.save_pretrained(tmp_path / "sliced")
    if name != "dots3_note_text":  # whose inner class, a dense one, is told from others by its name
        assert load_file(tmp_path / "sliced" / "model.safetensors").keys() == model.state_dict().keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced").state_dict()
    expected = dense.compress(config).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in loaded)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in EXPERTS if build(name)._can_set_experts_implementation()])
def test_implementations_of_experts_agree_and_can_be_chosen(name, tmp_path):
    dense = build(name, torch.float32)
    widths = [width // 8 * 8 for width in differing_widths(dense.config)]
    model = dense.compress(paper(widths=widths, dataset=calibration()))
    expected = model(tokens()).logits
    assert model.config._experts_implementation == "grouped_mm"
    for implementation in ("eager", "batched_mm"):
        model.set_experts_implementation(implementation)
        assert model.config._experts_implementation == implementation
        assert relative_error(model(tokens()).logits, expected) < 1e-5
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="batched_mm")
    assert loaded.config._experts_implementation == "batched_mm"
    assert relative_error(loaded(tokens()).logits, expected) < 1e-5


@pytest.mark.parametrize("name", EXPERTS)
def test_router_losses(name):
    dense, outputs = (
        model(tokens(), labels=tokens(), output_router_logits=True)
        for model in (build(name, torch.float32), tapering_model(name))
    )
    assert torch.isfinite(outputs.loss)
    if dense.get("aux_loss") is None:  # Some are balanced otherwise.
        assert name in MORE
    else:
        assert outputs.aux_loss > 0


@torch.no_grad()
@pytest.mark.parametrize("name", EXPERTS)
def test_widths_that_grouped_products_do_not_take(name, tmp_path):
    dense = build(name, torch.float32)
    widths = [38] * Decoder(dense).num_sites
    model = dense.compress(SliceGPTConfig(widths=widths, architecture="sliced", dataset=calibration()))
    expected = model(tokens()).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="grouped_mm")
    assert loaded.config._experts_implementation == "eager"
    assert relative_error(loaded(tokens()).logits, expected) < 1e-5


@torch.no_grad()
def test_widths_for_which_half_precision_has_no_grouped_products():
    """Rows of 44 numbers are whole 16 bytes in float32, and are not in bfloat16."""
    settings = {"widths": [44] * 5, "architecture": "sliced", "embeddings": "sliced", "dtype": "bfloat16"}
    config = SliceGPTConfig(**settings, dataset=calibration())
    model = build("mixtral", torch.float32).compress(config)
    assert model.to(torch.bfloat16)(tokens()).logits.isfinite().all()
