"""Several processes that slice one model, as two that talk through gloo: the result of one, or an error in all."""

import json
import os
import socket
import sys
import traceback

import pytest
import torch
import torch.distributed as dist
from interruptions import Died, die_at_call
from pretend_gpu import pretend_gpu
from safetensors.torch import load_file, save_file
from sharing import make_once
from tiny import build, calibration, paper, tokens
from transformers.utils import logging

from optimum_slicegpt import SliceGPTConfig, distributed
from optimum_slicegpt.distributed import Processes
from optimum_slicegpt.slicing.methods.refit import Refit
from optimum_slicegpt.slicing.statistics import DensePass
from optimum_slicegpt.storage import on_disk
from optimum_slicegpt.streaming import compress_checkpoint


pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not available")

UNEVEN = [{"input_ids": tokens(batch, 24, seed=batch)} for batch in (4, 1, 2, 5, 3)]
PADDED = [batch | {"attention_mask": (batch["input_ids"] > 20).long()} for batch in UNEVEN]
CASES = {
    "paper": ("llama", torch.float64, {"rotation": "per_block", "refit": False}, calibration(4)),
    "paper-float32": ("llama", torch.float32, {"rotation": "per_block", "refit": False}, calibration(4)),
    "paper-uneven": (
        "gpt2",
        torch.float64,
        {"rotation": "per_block", "refit": False, "orientation": "random"},
        UNEVEN,
    ),
    "default": ("llama", torch.float64, {}, calibration(4)),
    "default-float32": ("llama", torch.float32, {}, calibration(16)),
    "default-uneven": ("gpt2", torch.float64, {}, UNEVEN),
    "default-padded": ("llama", torch.float64, {}, PADDED),
    "default-alone": ("llama", torch.float64, {}, [{"input_ids": tokens(24, 24)}]),  # enough to train MLPs
    "fisher": ("llama", torch.float64, {"metric": "fisher"}, UNEVEN),
    "per_block": ("phi", torch.float64, {"metric": "fisher", "rotation": "per_block"}, UNEVEN),
    "energy": ("llama", torch.float64, {"schedule": "energy", "metric": "fisher"}, UNEVEN),
    "experts": ("mixtral", torch.float64, {}, UNEVEN),
    "sliced": ("llama", torch.float64, {"architecture": "sliced"}, UNEVEN),
    "norms behind": ("olmo2", torch.float64, {"sparsity": 0.25, "mlp_sparsity": 0.25}, UNEVEN),
    "narrow": ("gemma", torch.float64, {"sparsity": 0.3}, UNEVEN),
    "self": ("llama", torch.float64, {"dataset": "self", "nsamples": 7, "seqlen": 20, "batch_size": 2}, None),
}
"""Name -> family, dtype of the model, settings, calibration batches."""

STREAMED = {
    "default": {"round_to": 1, "round_neurons_to": 1},
    "fisher": {"metric": "fisher", "rotation": "per_block"},
}
"""Name -> settings of a run that is streamed, uneven batches shared out."""

TOLD = ("architecture", "widths", "neurons", "calibration", "energy_kept")
"""Entries of the record that each process tells."""
TOLERANCES = {torch.float64: 5e-5, torch.float32: 5e-4}
"""
Of weights: on so few tokens, regressions make 7e-5 of a change of all weights by float32's rounding, 6e-8. Their
factors are in float32 for a model in float64, too, where sums that differ in the last bit may be rounded apart.
"""


def sliced(name):
    family, dtype, settings, batches = CASES[name]
    model = build(family, dtype)
    state = torch.get_rng_state()
    model.compress(SliceGPTConfig(**{"round_to": 1, "round_neurons_to": 1, "dataset": batches} | settings))
    assert torch.equal(torch.get_rng_state(), state)
    return model


def stream(folder, output, **options):
    config = SliceGPTConfig(dataset=UNEVEN, **STREAMED[output.name.removeprefix("streamed-")])
    return compress_checkpoint(folder / "dense", output, config, max_memory="20KB", **options)


def stream_interrupted(rank, folder, output):
    """Both processes die after the third step: the first before it says so, the second while it waits for that."""
    before_the_end = (on_disk, "write_durably", 3) if rank == 0 else (Processes, "gathered", 2 + 2 * 3)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        die_at_call(patch, *before_the_end)
        stream(folder, output)
    return json.loads((folder / f".{output.name}.slicegpt" / "state.json").read_text())["done"]


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def overflowing():
    """One batch alone, which is the second process's, is too much for float16."""
    model = build("llama", torch.float16)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] = 65504.0
    batches = [{"input_ids": torch.full((2, 24), 5)}, {"input_ids": torch.full((2, 24), 3)}]
    model.compress(paper(sparsity=0.3, dataset=batches, dtype="float16"))


SCHEDULES = [
    {"schedule": schedule, "mlp_sparsity": 0.4, "round_neurons_to": 4, "architecture": "sliced"}
    for schedule in ("uniform", "energy")
]
"""Settings of each process, which lead to the same plan."""


def given_differently(rank, **settings):
    build("llama").compress(SliceGPTConfig(sparsity=0.3 + settings.pop("more", 0.0) * rank, **settings))


def failing(rank):
    """The second process fails in the middle of things, and goes."""
    if rank == 1:
        Refit.writers = lambda *args: sys.exit(3)
    build("llama").compress(SliceGPTConfig(dataset=calibration(4), round_to=1, round_neurons_to=1))


def work(rank, port, folder):
    """Everything that is tried in two processes, at once: starting them takes longest."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    try:
        told = {}
        for name in CASES:
            model = sliced(name)
            told[name] = {key: model.config.slicegpt[key] for key in TOLD}
            weights = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
            save_file(weights, folder / f"{name}-{rank}.safetensors")
        errors = {
            "overflow": error_of(overflowing),
            "batches": error_of(lambda: given_differently(rank, dataset=calibration(2 + rank))),
            "widths": error_of(lambda: given_differently(rank, dataset=calibration(2), more=0.2)),
            "settings": error_of(lambda: given_differently(rank, dataset=calibration(2), seed=rank)),
            "schedule": error_of(lambda: given_differently(rank, dataset=calibration(2), **SCHEDULES[rank])),
        }
        for name in STREAMED:
            done = stream_interrupted(rank, folder, folder / f"streamed-{name}")
            model = stream(folder, folder / f"streamed-{name}", resume=True)
            told[f"streamed-{name}"] = {key: model.config.slicegpt[key] for key in TOLD} | {"done": done}
        (folder / f"told-{rank}.json").write_text(json.dumps(told))
        (folder / f"errors-{rank}.json").write_text(json.dumps(errors))
        (folder / f"failing-{rank}.txt").write_text(error_of(lambda: failing(rank)))
    except BaseException:
        (folder / f"traceback-{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()  # or threads of gloo may end this process with SIGABRT


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Returns the folder that two processes have filled."""
    return make_once(tmp_path_factory, "together", work_together)


def work_together(folder):
    build("llama").save_pretrained(folder / "dense")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, port, folder), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 3], [
        path.read_text() for path in folder.glob("traceback-*")
    ]


def told(folder, what, rank):
    return json.loads((folder / f"{what}-{rank}.json").read_text())


# The result


@pytest.mark.parametrize("name", CASES)
def test_two_give_the_result_of_one(name, together):
    alone = sliced(name)
    tolerance = 1e-9 if name in ("paper", "paper-uneven") else TOLERANCES[alone.dtype]
    ours, first = (load_file(together / f"{name}-{rank}.safetensors") for rank in (1, 0))
    assert_close(first, alone.state_dict(), tolerance)
    for key, value in first.items():
        assert torch.equal(ours[key], value), key
    assert_told(together, name, alone.config.slicegpt)


@pytest.mark.parametrize("name", STREAMED)
def test_two_that_stream_give_the_result_of_one(name, together, tmp_path):
    """They were interrupted, and resumed."""
    alone = stream(together, tmp_path / f"streamed-{name}")
    found, expected = (load_file(folder / f"streamed-{name}/model.safetensors") for folder in (together, tmp_path))
    assert_close(found, expected, TOLERANCES[torch.float64])
    assert_told(together, f"streamed-{name}", alone.config.slicegpt)
    assert [told(together, "told", rank)[f"streamed-{name}"]["done"] for rank in (0, 1)] == [2, 2]
    assert not (together / f".streamed-{name}.slicegpt").exists()


def test_another_number_of_processes_does_not_resume(together, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        die_at_call(patch, on_disk.OnDisk, "commit", 2)
        with pytest.raises(Died):
            stream(together, tmp_path / "streamed-default")
    state = tmp_path / ".streamed-default.slicegpt" / "state.json"
    state.write_text(state.read_text().replace('"numbers of processes": 1', '"numbers of processes": 2'))
    with pytest.raises(ValueError, match="had other numbers of processes; resume it as it was begun"):
        stream(together, tmp_path / "streamed-default", resume=True)


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).abs().max() <= tolerance * value.abs().max(), key


def assert_told(folder, name, expected):
    for rank in (0, 1):
        record = told(folder, "told", rank)[name]
        *exact, energy_kept = TOLD  # of all tokens
        assert {key: record[key] for key in exact} == {key: expected[key] for key in exact}
        assert record[energy_kept] == pytest.approx(expected[energy_kept], abs=2e-6)


def test_the_first_batches_are_those_of_all(monkeypatch):
    """Batches that are measured first are counted over all processes."""
    seen, batches = [], calibration(9)  # 48 tokens each
    init = DensePass.__init__

    def counted(self, run, statistics, counts, **needs):
        seen.append(len(statistics.streams[0]))
        init(self, run, statistics, counts, **needs)

    monkeypatch.setattr(DensePass, "__init__", counted)
    monkeypatch.setattr("optimum_slicegpt.slicing.statistics.AXES_TOKENS", 5)
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(Processes, "share", lambda self, items, rank=rank: items[rank::2])
            build("llama").compress(SliceGPTConfig(sparsity=0.3, refit=False, dataset=batches))
    assert seen == [3, 2]  # of 5


# Errors


WHAT_DIFFERS = {"batches": "calibration data", "widths": "widths", "settings": "settings", "schedule": "settings"}


def test_what_is_wrong_with_one_is_an_error_in_all(together):
    for rank in (0, 1):
        errors = told(together, "errors", rank)
        assert "not finite in torch.float16; the model is unchanged" in errors["overflow"]
        for name, what in WHAT_DIFFERS.items():
            assert errors[name].startswith(f"ValueError: The 2 processes were given other {what}; give all of them")


def test_one_that_fails_ends_the_others(together):
    found = (together / "failing-0.txt").read_text()
    assert found.startswith("ConnectionError: Process 0 of 2 has lost the others, of which one has failed")


# Alone


def test_one_process_joins_nothing():
    processes, tensor = Processes("cpu"), torch.ones(2)
    assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
    assert processes.share([1, 2, 3]) == [1, 2, 3]
    processes.sum_(tensor)
    assert processes.agreed(tensor) is tensor and torch.equal(tensor, torch.ones(2))
    processes.check_alike({"batches": object()})
    assert not dist.is_initialized() and "WORLD_SIZE" not in os.environ


def test_sums_in_host_memory_move_in_parts(monkeypatch):
    processes, tensor, sizes = Processes("cpu"), torch.ones(3, 3), []
    processes.count, processes._device = 2, torch.device("cuda")
    monkeypatch.setattr(distributed, "NUMBERS_AT_ONCE", 4)
    monkeypatch.setattr(dist, "all_reduce", lambda part: sizes.append(len(part)) or part.mul_(2))
    with pretend_gpu():
        processes.sum_(tensor)
    assert sizes == [4, 4, 1] and torch.equal(tensor, torch.full((3, 3), 2.0))
