"""Norms behind the blocks, whose gains act along the dimensions of the stream: stock classes, nothing added."""

import pytest
import torch
from exactness import with_float64_norms
from forking import run_program
from more_families import POST_NORM
from tiny import HIDDEN, aligned, build, calibration, relative_error, tokens

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.export import export_stock
from optimum_slicegpt.linalg.regression import LeastSquares
from optimum_slicegpt.modeling.contexts import inputs_seen
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.slicing.methods.refit import Refit
from optimum_slicegpt.streaming import compress_checkpoint


WIDTH = 36
SMALLER = {"sparsity": 0.25, "mlp_sparsity": 0.25}
IN_A_FRESH_PROCESS = """
import sys, torch
from transformers import AutoModelForCausalLM
threads, root, *names = sys.argv[1:]
torch.set_num_threads(int(threads))  # on which rounding depends
inputs = torch.load(root + "/inputs.pt")
for name in names:
    model = AutoModelForCausalLM.from_pretrained(f"{root}/{name}/streamed")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as `tiny.aligned` does
    torch.save(model(inputs).logits.detach(), f"{root}/{name}/logits.pt")
"""


def post_norms(model):
    return [block.post_norm for block in Decoder(model).blocks()]


def with_strange_gains(model):
    """Draws the gains behind the blocks around zero; the dimension of the largest output is muted."""
    generator, offset = torch.Generator().manual_seed(3), Decoder(model).family.gain_offset
    for block in Decoder(model).blocks():
        gain = 1 + torch.randn(HIDDEN, generator=generator, dtype=torch.float64)
        gain[7] = 0
        block.post_norm.weight.copy_(gain - offset)
        for writer in block.writers().values():
            writer.weight[:, 7] *= 10
    return model


def sliced(model, **settings):
    return model.compress(SliceGPTConfig(dataset=calibration(8, batch=4), **settings))


@torch.no_grad()
@pytest.mark.parametrize(
    ("tied", "architecture"), [(True, "stock"), (False, "stock"), (True, "sliced")], ids=["tied", "untied", "sliced"]
)
@pytest.mark.parametrize("name", POST_NORM)
def test_deleting_nothing_is_exact(name, tied, architecture):
    model = with_float64_norms(with_strange_gains(build(name, tie_word_embeddings=tied)))
    expected, dense_class = model(tokens(seed=7)).logits, type(model)
    model = with_float64_norms(sliced(model, sparsity=0, architecture=architecture))
    assert (type(model) is dense_class) == (architecture == "stock")
    assert relative_error(model(tokens(seed=7)).logits, expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", POST_NORM)
def test_deleting_dimensions_that_nothing_writes_to_is_exact_on_unseen_tokens(name, tied):
    model = with_float64_norms(build(name, tie_word_embeddings=tied))
    decoder, empty = Decoder(model), torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(2))[WIDTH:]
    for writer in [*decoder.tables, *(each for block in decoder.blocks() for each in block.writers().values())]:
        writer.weight[:, empty] = 0
        if writer.bias is not None:
            writer.bias[empty] = 0
    expected, dense_class = model(tokens(seed=7)).logits, type(model)
    smaller = with_float64_norms(sliced(model, widths=[WIDTH] * decoder.num_sites))
    assert type(smaller) is dense_class and smaller.config.hidden_size == WIDTH
    assert relative_error(smaller(tokens(seed=7)).logits, expected) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3_text", "olmo2"])
def test_norms_divide_on_average_by_what_they_divide_by_in_the_dense_model(name, monkeypatch):
    def energies(model):
        norms = post_norms(model)
        with inputs_seen(norms) as seen:
            model(tokens(16, seed=7))
        return torch.stack([each.square().mean(-1) for each in seen.values()]).flatten(1)

    settings = SliceGPTConfig(dataset=calibration(16, batch=8), **SMALLER, refine=0)
    dense = energies(with_strange_gains(build(name)))
    fitted = energies(with_strange_gains(build(name)).compress(settings)) / dense
    monkeypatch.setattr(LeastSquares, "solve_positive", lambda self: torch.ones(self.num_inputs, dtype=torch.float64))
    plain = energies(with_strange_gains(build(name)).compress(settings)) / dense
    assert ((fitted.mean(1) - 1).abs() < (plain.mean(1) - 1).abs() / 3).all()


def test_files_are_the_same_in_memory_and_streamed_and_load_as_a_stock_class(tmp_path):
    torch.save(tokens(), tmp_path / "inputs.pt")
    expected = {}
    for name in POST_NORM:
        folder = tmp_path / name
        build(name, torch.float32).save_pretrained(folder / "dense")
        config = SliceGPTConfig(dataset=calibration(), **SMALLER)
        model = build(name, torch.float32)
        planned = SlicePlan.from_config(config, model.config).num_parameters(model)
        model.compress(config).save_pretrained(folder / "memory")
        compress_checkpoint(folder / "dense", folder / "streamed", config, max_memory="20KB")
        files = [(folder / each / "model.safetensors").read_bytes() for each in ("memory", "streamed")]
        assert files[0] == files[1] and not list((folder / "memory").glob("*.py"))
        assert model.num_parameters() == planned and model.config.hidden_size == WIDTH
        expected[name] = aligned(model)(tokens()).logits
    run_program("-c", IN_A_FRESH_PROCESS, torch.get_num_threads(), tmp_path, *expected)
    for name, logits in expected.items():
        assert torch.equal(torch.load(tmp_path / name / "logits.pt"), logits), name


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma2", "exaone4"])
def test_a_sliced_class_generates_what_it_computes_and_has_a_stock_form(name):
    model, ids = sliced(build(name), **SMALLER, architecture="sliced"), tokens(length=6)
    assert relative_error(export_stock(model)(ids).logits, model(ids).logits) < 1e-6
    generated = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for _ in range(8):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ({"rotation": "per_block"}, "rotation='shared'"),
        ({"refit": False}, "refit=True"),
        ({"orientation": "random"}, "orientation='pca'"),
    ],
)
def test_methods_that_turn_the_stream_freely_are_refused(setting, remedy):
    (key, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"{key}={value!r}, but a gemma2 model has norms .*; use {remedy}."):
        build("gemma2", torch.float32).compress(SliceGPTConfig(sparsity=0.25, dataset=calibration(), **setting))


@torch.no_grad()
def test_the_gains_before_a_tied_head_are_fitted(monkeypatch):
    """Along axes that lie near to dimensions, the dense gains are no diagonal matrix."""

    def error():
        model = build("gemma3_text", tie_word_embeddings=True)
        model.model.norm.weight.copy_(torch.linspace(-0.5, 4, HIDDEN))
        expected = model(tokens(8, seed=7)).logits
        return relative_error(sliced(model, sparsity=0.25)(tokens(8, seed=7)).logits, expected)

    fitted = error()
    monkeypatch.setattr(Refit, "final_gain", lambda self, norm, here, prior, x, z: prior)
    assert fitted < 0.9 * error()
