"""Slicing on a pretend GPU: nothing is on a wrong device, results are those of the CPU, nothing waits in loops."""

import copy

import pytest
import torch
from image_models import build_whole, seen_and_read
from interruptions import hash_files
from pretend_gpu import in_loops, pretend_gpu
from tiny import TINY, build, calibration, pairs, tokens
from transformers.models.llama import modeling_llama

from optimum_slicegpt import SliceGPTConfig, load_batches
from optimum_slicegpt.evaluation.spectrum import measure_spectrum
from optimum_slicegpt.modeling.families import family_of
from optimum_slicegpt.slicing.methods import refine
from optimum_slicegpt.streaming import compress_checkpoint


METHODS = {
    "default": {"parameter_reduction": 0.2, "refine": 3},
    "fisher": {"parameter_reduction": 0.2, "metric": "fisher", "refine": 0},
    "energy": {"sparsity": 0.2, "mlp_sparsity": 0.3, "schedule": "energy"},
    "per_block": {"sparsity": 0.3, "rotation": "per_block", "refit": False},
    "refitted per block": {"sparsity": 0.3, "rotation": "per_block", "orientation": "random"},
    "offloaded": {"parameter_reduction": 0.2, "offload_activations": True, "refine": 0},
}
CASES = [*pairs(TINY, METHODS), ("gemma2", "default"), ("olmo2", "energy")]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Few tokens are enough to train MLPs."""
    monkeypatch.setattr(refine, "STEP_TOKENS", 16)


def padded(batches, count=5):
    """Masks the last tokens of the last sequence of each batch."""
    masks = [torch.ones_like(batch["input_ids"]) for batch in batches]
    for mask in masks:
        mask[-1, -count:] = 0
    return [batch | {"attention_mask": mask} for batch, mask in zip(batches, masks, strict=True)]


def slice_(model, method, batches, **kwargs):
    settings = METHODS[method]
    family = family_of(model.config)
    if family.moe or family.keeps_neurons:
        settings = {key: value for key, value in settings.items() if key not in ("mlp_sparsity", "schedule")}
    return model.compress(SliceGPTConfig(**settings, dataset=batches, **kwargs))


@pytest.mark.parametrize("name, method", CASES)
def test_a_gpu_computes_what_the_cpu_does(name, method):
    batches = padded(calibration(batches=1, batch=3))
    model = build(name, torch.float32)
    expected = slice_(copy.deepcopy(model), method, batches).state_dict()
    with pretend_gpu() as gpu:
        found = slice_(model, method, batches, device="cuda").state_dict()
        assert {each.device.type for each in found.values()} == {"cpu"}
    assert gpu.peak > 0
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(("name", "offload"), [("llava_next", False), ("qwen3_vl", True)])
def test_images_are_encoded_where_layers_compute(name, offload):
    dataset = [seen_and_read(name, torch.float32)]
    settings = {"sparsity": 1 / 3, "offload_activations": offload, "dataset": dataset}
    whole = build_whole(name, torch.float32)
    expected = copy.deepcopy(whole).compress(SliceGPTConfig(**settings)).state_dict()
    with pretend_gpu() as gpu:
        found = whole.compress(SliceGPTConfig(**settings, device="cuda")).state_dict()
        assert {each.device.type for each in found.values()} == {"cpu"}
    assert gpu.peak > 0
    assert all(torch.equal(found[key], value) for key, value in expected.items())


OFFLOADED = {"keep", "start", "forward", "_through_layer", "_sample_tokens", "_add_writers", "leave", "<listcomp>"}
"""Functions that may move the stream of a batch where it is offloaded. Python before 3.12 names comprehensions."""


@pytest.mark.parametrize(
    "name, method", [("gemma2", "default"), *(("llama", each) for each in sorted({*METHODS} - {"default"}))]
)
def test_no_loop_over_batches_waits_for_the_gpu_or_moves_anything(name, method):
    """Batches reach the device where the run starts, and nowhere else unless they are offloaded."""
    waits, moves = [], []
    for count, length in ((1, 48), (3, 16)):
        batches = padded([{"input_ids": tokens(1, length, seed=seed)} for seed in range(count)])
        model = build(name, torch.float32)
        with pretend_gpu() as gpu:
            slice_(model, method, batches, device="cuda")
        waits.append(gpu.waits)
        moves.append(gpu.moves)
    # Of each sequence transformers asks whether it is several in a row, before the layers, which are not computed.
    assert functions(in_loops(*waits)) <= {"first_stream", "loss_gradient"}
    assert functions(in_loops(*moves)) - (OFFLOADED if method == "offloaded" else set()) == {"first_stream"}


def test_offloaded_streams_cross_seldom():
    """
    Through a layer, streams cross 16 times, a few of these for every third token alone; what attention's writers read
    counts as one. They crossed 33 times as long as what all writers read was kept, and every token crossed before some
    were picked.
    """
    sizes, found = {"hidden_size": 96, "intermediate_size": 320, "head_dim": 24}, []
    for count in (2, 4):
        batches = [{"input_ids": tokens(4, 64, seed=seed)} for seed in range(count)]
        with pretend_gpu() as gpu:
            slice_(build("llama", torch.bfloat16, **sizes), "offloaded", batches, device="cuda")
        found.append(gpu.transfers.total())
    few, many = found
    assert (many - few) / (2 * 4 * 64) < 2 * 16 * 96 * 2  # bytes per token; layers, times, dimensions, bytes of each


def test_a_search_for_axes_moves_second_moments_once():
    settings, crossed = METHODS["fisher"] | {"sparsity": 0.25, "parameter_reduction": None}, []
    for memory in (2**40, 0):
        with pretend_gpu(memory) as gpu:
            config = SliceGPTConfig(
                **settings, offload_activations=True, device="cuda", dataset=calibration(batches=2)
            )
            build("llama", torch.float32).compress(config)
        crossed.append(sum(size for line, size in gpu.transfers.items() if ":<lambda>:" in line))
    sites, size = 5, 48
    assert crossed[0] == sites * size**2 * 8 < crossed[1] / 2


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_regressions_for_which_a_gpu_has_no_room_are_in_host_memory(name):
    batches, model = padded(calibration(batches=2)), build(name, torch.float32)
    expected, peaks = slice_(copy.deepcopy(model), "default", batches).state_dict(), []
    for memory in (2**40, 0):
        with pretend_gpu(memory) as gpu:
            found = slice_(copy.deepcopy(model), "default", batches, device="cuda").state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        peaks.append(gpu.peak)
    assert peaks[1] < peaks[0]


def test_a_model_on_the_gpu_stays_there():
    expected = slice_(build("gpt2", torch.float32), "default", calibration(batches=2)).state_dict()
    model = build("gpt2", torch.float32)
    with pretend_gpu():
        found = slice_(model.to("cuda"), "default", calibration(batches=2)).state_dict()
        assert {each.device.type for each in found.values()} == {"cuda"}
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_streaming_to_a_gpu_ends_in_the_same_bytes(tmp_path):
    build("llama", torch.float32).save_pretrained(tmp_path / "dense")
    settings = METHODS["per_block"] | {"dataset": padded(calibration(batches=2))}
    compress_checkpoint(tmp_path / "dense", tmp_path / "expected", SliceGPTConfig(**settings))
    with pretend_gpu() as gpu:
        config = SliceGPTConfig(**settings, device="cuda")
        compress_checkpoint(tmp_path / "dense", tmp_path / "found", config, max_memory=2**14)
    assert gpu.peak > 0 and hash_files(tmp_path / "found") == hash_files(tmp_path / "expected")


def test_a_spectrum_measured_on_a_gpu():
    model, batches = build("opt", torch.float32), load_batches(padded(calibration(batches=2)))
    expected = measure_spectrum(model, batches)
    with pretend_gpu():
        found = measure_spectrum(model, batches, device="cuda")
        assert {rows.device.type for rows in found.energy.values()} == {"cpu"}
    assert all(torch.equal(found.energy[basis], rows) for basis, rows in expected.energy.items())


def test_masks_are_made_where_layers_compute(monkeypatch):
    """Those of flex attention hold other tensors, and code that reads them, so they could not be moved."""
    seen, original = [], modeling_llama.create_causal_mask

    def recording(**kwargs):
        seen.append(kwargs["attention_mask"].device.type)
        return original(**kwargs)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", recording)
    model = build("llama", torch.float32)
    with pretend_gpu():
        slice_(model, "per_block", padded(calibration(batches=2)), device="cuda")
    assert seen == ["cuda", "cuda"]


def test_random_rotations_are_made_where_layers_compute(monkeypatch):
    seen, original = [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda matrix: seen.append(matrix.device.type) or original(matrix))
    with pretend_gpu():
        slice_(build("llama", torch.float32), "refitted per block", calibration(batches=2), device="cuda")
    assert set(seen) == {"cuda"}


def functions(lines):
    return {line.split(":")[1] for line in lines}
