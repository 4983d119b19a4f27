"""Shared axes, refits, the Fisher metric and smaller MLPs, in every family."""

import pytest
import torch
from exactness import confine_writers, with_float64_norms
from more_families import MORE
from tiny import HIDDEN, TINY, WITH_NEURONS, build, calibration, pairs, relative_error, tokens

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.data.batches import TokenBatches
from optimum_slicegpt.modeling.contexts import evaluating
from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.families import FAMILIES, family_of, num_neurons
from optimum_slicegpt.slicing.compress import compress
from optimum_slicegpt.slicing.methods.fitted_stream import FittedStream
from optimum_slicegpt.slicing.pairs import BlockPair
from optimum_slicegpt.slicing.run import Computation
from optimum_slicegpt.slicing.state import Statistics
from optimum_slicegpt.slicing.statistics import DensePass
from optimum_slicegpt.storage.base import InMemory


METHODS = {
    "shared": {"rotation": "shared"},
    "shared-refit": {"rotation": "shared", "refit": True},
    "shared-fisher": {"rotation": "shared", "metric": "fisher"},
    "shared-refit-fisher": {"rotation": "shared", "refit": True, "metric": "fisher"},
    "per_block-refit": {"rotation": "per_block", "refit": True},
    "per_block-fisher": {"rotation": "per_block", "metric": "fisher"},
    "per_block-refit-fisher": {"rotation": "per_block", "refit": True, "metric": "fisher"},
}
PLAIN_ENTRY = [name for name in TINY if not FAMILIES[name.split("-")[0]].wide_entry]
"""Those whose stream begins as rows of the table, not as their norm."""


def sliced(model, **kwargs):
    kwargs = {"sparsity": 1 / 3, "rotation": "shared", "dataset": calibration(8, batch=4)} | kwargs
    return model.compress(SliceGPTConfig(**kwargs))


def error(model, dense, ids):
    with torch.no_grad():
        return (model(ids).logits - dense(ids).logits).square().mean().item()


@torch.no_grad()
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_a_shared_rotation_keeps_logits(name, refit):
    model = with_float64_norms(build(name))
    expected = model(tokens()).logits
    settings = {"architecture": "sliced", "orientation": "random", "refit": refit}
    rotated = with_float64_norms(sliced(model, sparsity=0, **settings))
    assert set(rotated.config.widths) == {HIDDEN} and not rotated.config.shortcuts
    bound = 1e-4 if refit else 1e-6 if name in MORE else 1e-10  # Routers and state spaces compute in float32.
    assert relative_error(rotated(tokens()).logits, expected) < bound


@torch.no_grad()
@pytest.mark.parametrize(("name", "method"), pairs(PLAIN_ENTRY, METHODS))
def test_slicing_empty_dimensions_is_lossless_on_unseen_tokens(name, method):
    model = with_float64_norms(build(name, tie_word_embeddings=False))
    confine_writers(model, rank=16)
    expected = model(tokens(seed=7)).logits
    widths = [16] * Decoder(model).num_sites
    smaller = with_float64_norms(sliced(model, sparsity=None, widths=widths, **METHODS[method]))
    assert smaller.config.slicegpt["widths"] == widths
    assert relative_error(smaller(tokens(seed=7)).logits, expected) < (1e-4 if "refit" in method else 1e-6)


@pytest.mark.parametrize("name", PLAIN_ENTRY)
def test_a_refit_follows_the_dense_model(name):
    data = calibration(16, batch=8)
    ids = tokens(batch=16, seed=7)
    dense = build(name)
    settings = {"embeddings": "sliced", "dataset": data}  # A narrow matrix that is shared is not fitted.
    plain, refitted = (error(sliced(build(name), refit=refit, **settings), dense, ids) for refit in (False, True))
    assert refitted < plain


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon_h1", "mixtral"])
def test_what_writers_of_attention_read_is_computed_once(name, monkeypatch):
    """They are written from what was kept, as the block itself would write; those of MLPs compute it again."""
    seen, output = [], BlockPair.output

    def counted(block, stream, batch):
        seen.append(block.dense.kind)
        return output(block, stream, batch)

    def compared(stream, block, *others):
        kept, before = list(stream._given), list(stream.values)
        leave(stream, block, *others)
        left, stream.run.state.z, stream._given = stream.values, before, []
        with monkeypatch.context() as uncounted:
            uncounted.setattr(BlockPair, "output", output)
            leave(stream, block, *others)
        assert len(kept) == (len(stream.values) if block.dense.kind == "attn" else 0)
        for found, expected in zip(left, stream.values, strict=True):
            assert relative_error(found, expected) < 1e-5

    leave = FittedStream.leave
    monkeypatch.setattr(BlockPair, "output", counted)
    monkeypatch.setattr(FittedStream, "leave", compared)
    sliced(build(name), refine=0)
    kinds = [block.kind for block in Decoder(build(name)).blocks()]
    assert seen.count("attn") == kinds.count("attn") * 8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "phi", "opt", "mixtral"])
def test_the_dense_model_is_not_changed(name, method):
    model, config = build(name), SliceGPTConfig(sparsity=1 / 3, **METHODS[method])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = calibration()
    given = [batch["input_ids"].clone() for batch in batches]
    state = torch.random.get_rng_state()
    compress(model, [SlicePlan.from_config(config, model.config)], TokenBatches(batches, "tokens"), config)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(batch["input_ids"], ids) for batch, ids in zip(batches, given, strict=True))
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_the_gradient_of_the_stream_is_that_of_the_whole_model(name):
    """Layer by layer, as a run takes it, against one backward pass with hooks on what every layer reads."""
    model = build(name)
    family = family_of(model.config)
    batch = calibration(1)[0] | {"attention_mask": torch.ones(2, 24, dtype=torch.long)}
    batch["attention_mask"][0, -5:] = 0
    layers = getattr(model.base_model.get_submodule(family.body), family.layers)
    found = {}

    def note(layer, args, kwargs):
        stream = args[0] if args else kwargs["hidden_states"]
        centred = stream - stream.mean(-1, keepdim=True) * family.layer_norm
        size = (centred.detach().square().mean(-1, keepdim=True) + 1e-6).sqrt()
        stream.register_hook(lambda slope: found.update({layer: slope * size}))

    for layer in layers:
        layer.register_forward_pre_hook(note, with_kwargs=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    logits = model(**batch).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    for layer in layers:
        layer._forward_pre_hooks.clear()
        layer._forward_pre_hooks_with_kwargs.clear()

    config = SliceGPTConfig()
    run, statistics = (
        Computation(model, TokenBatches([batch], "tokens"), config, InMemory(model, config)),
        Statistics(),
    )
    with torch.no_grad(), evaluating(model):
        statistics.streams = [run.start()]
        for measure in DensePass(run, statistics, gradients=True).steps():
            measure()
    for index, layer in enumerate(layers):
        slope = found[layer][batch["attention_mask"].bool()]
        if family.layer_norm:
            slope = slope - slope.mean(-1, keepdim=True)
        found_moment, moment = statistics.gradients[index * len(family.blocks)], slope.T @ slope
        torch.testing.assert_close(found_moment, moment, rtol=1e-4, atol=1e-5 * moment.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_NEURONS)
def test_idle_neurons_are_deleted_without_loss(name):
    model = with_float64_norms(build(name))
    family = family_of(model.config)
    layers = getattr(model.base_model.get_submodule(family.body), family.layers)
    idle = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:16]
    for layer in layers:
        weight = layer.get_submodule(family.mlp_writer).weight
        (weight if weight.shape[0] == 40 and weight.shape[1] != 40 else weight.T)[idle] = 0
    expected = model(tokens(seed=7)).logits
    smaller = with_float64_norms(sliced(model, sparsity=0, refit=True, mlp_sparsity=0.4))
    assert num_neurons(smaller.config) == 24
    assert relative_error(smaller(tokens(seed=7)).logits, expected) < 5e-2


@pytest.mark.parametrize("rotation", ["shared", "per_block"])
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "opt", "phi"])
def test_neurons_cost_less_than_a_few_times_what_dimensions_cost(name, rotation):
    dense, data, ids = build(name), calibration(16, batch=8), tokens(batch=16, seed=7)
    chosen = error(sliced(build(name), rotation=rotation, refit=True, mlp_sparsity=0.4, dataset=data), dense, ids)
    untouched = error(sliced(build(name), rotation=rotation, refit=True, dataset=data), dense, ids)
    assert chosen < 6 * untouched


def test_a_token_without_a_signal_is_no_obstacle():
    """Padding's embedding is zero in many models, and at the start of a text it stays so."""
    data = calibration(4, batch=4)
    for batch in data:
        batch["input_ids"][:, 0] = 0
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = 0
        assert sliced(model, dataset=data)(tokens()).logits.isfinite().all()


def test_a_metric_needs_something_to_predict():
    model = build("llama")
    config = SliceGPTConfig(sparsity=0.25, metric="fisher", dataset=[{"input_ids": tokens(40, 1)}])
    with pytest.raises(ValueError, match="metric='fisher' found no gradient at site 0 .* at least 2 tokens"):
        model.compress(config)
