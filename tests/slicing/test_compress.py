"""A new method is one new file, a line in a table of `compress.py`, and a name in the configuration."""

import pytest
import torch
from tiny import build, calibration, relative_error, tokens
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, configuration, load_batches
from optimum_slicegpt.evaluation.spectrum import measure_spectrum
from optimum_slicegpt.planning import inspection
from optimum_slicegpt.reports.text import inspection_rows
from optimum_slicegpt.slicing import compress
from optimum_slicegpt.slicing.parts import Axes, Neurons
from optimum_slicegpt.slicing.run import Run


class CoordinateAxes(Axes):
    """Keeps the coordinates of the stream that hold most energy over all sites: nothing is turned."""

    needs = frozenset({"moments"})
    decides = True

    def decide(self):
        state = self.run.state
        energy = sum(moment.diagonal() / moment.trace() for moment in state.statistics.moments)
        kept = energy.argsort(descending=True)[: self.run.plan.widths[0]].sort().values
        state.axes = torch.eye(len(energy), dtype=torch.float64)[:, kept]

    def find(self, site, here, x, z):
        self.record_energy(self.run.state.axes, self.run.state.statistics.moments[site])
        return self.basis(self.run.state.axes, self.metric.at(site))


class GrowingNeurons(Neurons):
    """Keeps more neurons in each layer than in the one before."""

    decides = True

    def decide(self):
        count = len(self.run.dense.layers)
        shifts = (8 * index - 4 * (count - 1) for index in range(count))
        self.run.set_neurons([self.run.plan.neurons + shift for shift in shifts])


@pytest.fixture
def toys(monkeypatch):
    """Each toy has a line in its table and a name in the configuration, and there is nothing else of them."""
    monkeypatch.setitem(compress.AXES, "coordinates", CoordinateAxes)
    monkeypatch.setattr(configuration, "ROTATIONS", (*configuration.ROTATIONS, "coordinates"))
    monkeypatch.setitem(compress.NEURONS, "growing", GrowingNeurons)
    monkeypatch.setattr(configuration, "SCHEDULES", (*configuration.SCHEDULES, "growing"))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "phi", "gpt2"])
def test_new_axes(name, toys, tmp_path):
    model = build(name)
    table = model.get_input_embeddings().weight.clone()
    config = SliceGPTConfig(sparsity=0.25, rotation="coordinates", refit=False, embeddings="sliced")
    config.dataset = calibration()
    model.compress(config)
    assert set(model.config.slicegpt["widths"]) <= {35, 36} and model.config.slicegpt["rotation"] == "coordinates"
    if name == "llama":  # LayerNorm families subtract the mean from the table
        columns = model.get_input_embeddings().weight / (36 / 48) ** 0.5
        assert all(any(torch.allclose(column, other) for other in table.T) for column in columns.T)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(loaded(tokens()).logits, model(tokens()).logits)


@torch.no_grad()
@pytest.mark.parametrize("rotation", ["shared", "coordinates"])
def test_a_new_schedule(rotation, toys, tmp_path):
    model = build("llama")
    settings = {"schedule": "growing", "rotation": rotation, "mlp_sparsity": 0.4, "sparsity": 1 / 6}
    model.compress(SliceGPTConfig(dataset=calibration(), **settings))
    assert model.config.intermediate_sizes == [20, 28] and model.config.slicegpt["schedule"] == "growing"
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(loaded(tokens()).logits, model(tokens()).logits)


def test_new_axes_are_inspected(toys, monkeypatch):
    monkeypatch.setattr(inspection, "ROTATIONS", configuration.ROTATIONS)
    model = build("llama", torch.float32)
    found = inspection.inspect_dense(model.config, sparsities=[0.25], reductions=[0.2], dtype="auto", round_to=8)
    batches = load_batches(calibration())
    measured = inspection.add_energy(found, measure_spectrum(model, batches))
    new, old = ([each for each in measured.sliced if each.rotation == name] for name in ("coordinates", "shared"))
    assert [each.cost for each in new] == [each.cost for each in old]
    assert all(each.energy_kept is None for each in new) and all(each.energy_kept for each in old)
    rows = inspection_rows(measured)
    assert len({len(row) for row in rows}) == 1 and [row[0] for row in rows].count("coordinates") == 2


def test_names_that_no_table_has_are_refused():
    for key in ("rotation", "schedule"):
        with pytest.raises(ValueError, match=f"{key}='coordinates'; choose one of"):
            SliceGPTConfig(**{key: "coordinates"})


def test_every_name_in_the_configuration_has_its_line():
    assert tuple(compress.AXES) == configuration.ROTATIONS
    assert tuple(compress.NEURONS) == configuration.SCHEDULES
    assert tuple(compress.METRICS) == configuration.METRICS


def test_second_moments_are_forgotten_once_axes_are_found(monkeypatch):
    held, layer = [], Run.layer
    monkeypatch.setattr(
        Run, "layer", lambda run, index: held.append(len(run.state.statistics.moments)) or layer(run, index)
    )
    model = build("llama")
    model.compress(SliceGPTConfig(sparsity=0.25, dataset=calibration()))
    assert held == [0, 0]
    assert len(model.config.slicegpt["energy_kept"]) == 5 and min(model.config.slicegpt["energy_kept"]) > 0.75


def test_nothing_is_measured_where_all_of_the_stream_is_kept():
    model = build("llama")
    model.compress(SliceGPTConfig(mlp_sparsity=0.5, sparsity=0, dataset=calibration()))
    assert "second moments" not in model.config.slicegpt["seconds"]
    assert model.config.slicegpt["energy_kept"] == [1.0] * 5


def test_nothing_is_measured_where_all_neurons_are_kept():
    model = build("llama")
    model.compress(SliceGPTConfig(parameter_reduction=0, schedule="energy", dataset=calibration()))
    assert "second moments" not in model.config.slicegpt["seconds"]
    assert model.config.slicegpt["neurons"] is None


@torch.no_grad()
def sliced_logits(batches, settings):
    model = build("llama")
    model.compress(SliceGPTConfig(sparsity=0.25, dataset=batches, **settings))
    return model(tokens()).logits


def padded(rows, left, right):
    widths = (left, right)
    return {"input_ids": pad(rows, widths), "attention_mask": pad(torch.ones_like(rows), widths)}


@pytest.mark.parametrize("settings", [{}, {"metric": "fisher", "rotation": "per_block"}])
def test_only_tokens_count(settings):
    """
    Batches may be of any sizes, and hold padding wherever it does not change positions.

    Shared axes are searched for where there is a metric, which is as exact as the search.
    """
    rows = tokens(24, 6)
    expected = sliced_logits([{"input_ids": rows}], settings)
    no_tokens = {"input_ids": rows[:0]}
    only_padding = {name: torch.cat([each, 0 * each[:1]]) for name, each in padded(rows, 0, 0).items()}
    for batches in (
        [{"input_ids": row} for row in rows],
        [{"input_ids": part} for part in rows.split([11, 1, 12])] + [no_tokens],
        [padded(part, 0, 58) for part in rows.split(12)],
        [padded(part, 3, 0) for part in rows.split(12)],
        [only_padding],
    ):
        assert relative_error(sliced_logits(batches, settings), expected) < 1e-8
