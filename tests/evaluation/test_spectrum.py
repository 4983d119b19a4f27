"""The energy of a dense model's stream, against what its norms are seen to read."""

import pytest
import torch
from configurations import tiny_config
from tiny import build, calibration, paper, tokens

from optimum_slicegpt import load_batches
from optimum_slicegpt.evaluation.spectrum import measure_spectrum
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.planning.inspection import Spectrum, add_energy, inspect_dense


def streams_read(model, batches):
    """Returns the stream `(tokens, D)` that the norm at each site reads, caught by hooks."""
    family = family_of(model.config)
    body = model.base_model.get_submodule(family.body)
    layers = getattr(body, family.layers)
    names = [family.attn_norm] if family.parallel else [family.attn_norm, family.mlp_norm]
    norms = [layer.get_submodule(name) for layer in layers for name in names] + [getattr(body, family.final_norm)]
    seen = [[] for _ in norms]
    for norm, inputs in zip(norms, seen, strict=True):
        norm.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].reshape(-1, 48)))
    for batch in batches:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().flatten()
        before = [len(inputs) for inputs in seen]
        model(**batch)
        for inputs, start in zip(seen, before, strict=True):
            inputs[start:] = [each[mask] for each in inputs[start:]]
    return [torch.cat(inputs) for inputs in seen]


@pytest.mark.parametrize("name", ["llama", "gemma", "opt", "gpt_neox"])
def test_energies_are_eigenvalues_of_what_the_norms_read(name):
    model = build(name)
    batches = [*calibration(2), {"input_ids": tokens(seed=5), "attention_mask": torch.ones(2, 24, dtype=torch.long)}]
    batches[-1]["attention_mask"][1, 20:] = 0
    found = measure_spectrum(model, load_batches(batches))
    assert (found.source, found.tokens) == ("tokens", 5 * 24 + 20)
    for site, stream in enumerate(streams_read(model, batches)):
        if family_of(model.config).layer_norm:
            stream = stream - stream.mean(-1, keepdim=True)
        directions = stream / stream.norm(dim=-1, keepdim=True)  # so that their energies add up to 1
        expected = torch.linalg.svdvals(directions).square() / len(stream)
        energy = found.energy["per_block"][site]
        assert energy.dtype == torch.float64
        assert torch.allclose(energy, expected, rtol=1e-3, atol=1e-9)  # norms divide by a little more


def test_shared_axes_hold_the_same_energy_otherwise_distributed():
    model = build("llama")
    found = measure_spectrum(model, load_batches(calibration()))
    own, shared = found.energy["per_block"], found.energy["shared"]
    assert own.shape == shared.shape == (5, 48)
    assert torch.allclose(own.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(shared.sum(1), torch.ones(5, dtype=torch.float64))
    assert (own.diff() <= 0).all() and (shared.mean(0).diff() <= 1e-12).all()
    assert (own.cumsum(1) >= shared.cumsum(1) - 1e-12).all()  # no axes hold more than a site's own


def test_measuring_leaves_the_model_alone_and_runs_in_any_dtype():
    model = build("llama", torch.float32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact = measure_spectrum(model, load_batches(calibration()))
    rough = measure_spectrum(model, load_batches(calibration()), dtype=torch.bfloat16, device="cpu")
    assert torch.allclose(exact.energy["per_block"], rough.energy["per_block"], atol=2e-3)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_kept():
    rows = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
    spectrum = Spectrum("texts", 7, {"per_block": rows, "shared": rows.flip(1)})
    assert spectrum.energy_kept("per_block", [2, 4]) == [0.75, 1.0]
    assert spectrum.energy_kept("shared", [3, 1]) == pytest.approx([0.5, 0.01])
    assert spectrum.widths_for(0.75) == [2, 1]
    assert spectrum.widths_for(0.9) == [4, 1]


def test_every_way_of_slicing_is_told_what_it_keeps():
    config = tiny_config("llama")
    found = inspect_dense(config, sparsities=[0.25], reductions=[0.2, 0.999], dtype="auto", round_to=8)
    spectrum = measure_spectrum(build("llama"), load_batches(calibration()))
    for each in add_energy(found, spectrum).sliced:
        if each.error:
            assert each.energy_kept is None
            continue
        expected = [
            spectrum.energy[each.rotation][site, :width].sum().item() for site, width in enumerate(each.widths)
        ]
        assert each.energy_kept == pytest.approx(expected)
    assert {bool(each.error) for each in found.sliced} == {True, False}


def test_sliced_models_are_refused():
    model = build("llama", torch.float32).compress(paper(sparsity=0.3, dataset=calibration()))
    with pytest.raises(ValueError, match="This model is already sliced"):
        measure_spectrum(model, load_batches(calibration()))
