"""Runs that die and are resumed."""

import json
import os
import re
import shutil
import sys

import pytest
from interruptions import Died, die_at_call, hash_files
from tiny import build, calibration
from torch import bfloat16, float32

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.storage.files import locked
from optimum_slicegpt.storage.on_disk import OnDisk
from optimum_slicegpt.storage.shards import Shards
from optimum_slicegpt.streaming import StreamedRun, compress_checkpoint


METHODS = {
    "paper": {"rotation": "per_block", "refit": False, "orientation": "random"},
    "refit": {"orientation": "random"},
    "fisher": {"metric": "fisher"},
    "shared": {"refit": False},
    "energy": {"schedule": "energy", "mlp_sparsity": 0.4, "round_to": 1, "round_neurons_to": 1},
}
STEPS = {"paper": 4, "refit": 7, "fisher": 10, "shared": 7, "energy": 8}
"""Of a model with two layers."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "llama"
    build("llama", float32).save_pretrained(folder)
    return folder


def config_of(method, **overrides):
    return SliceGPTConfig(**{"sparsity": 1 / 3, "dataset": calibration()} | METHODS[method] | overrides)


@pytest.fixture(scope="module")
def undisturbed(dense, tmp_path_factory):
    """Returns a function that computes the hashes of a method's undisturbed run."""
    root, found = tmp_path_factory.mktemp("undisturbed"), {}

    def undisturbed(method):
        if method not in found:
            compress_checkpoint(dense, root / method, config_of(method))
            found[method] = hash_files(root / method)
        return found[method]

    return undisturbed


@pytest.mark.parametrize("method, step", [(method, step) for method in METHODS for step in range(1, STEPS[method])])
def test_a_run_that_dies_after_any_step_ends_in_the_same_bytes(
    dense, undisturbed, tmp_path, monkeypatch, method, step
):
    output = tmp_path / "sliced"
    with monkeypatch.context() as patch:
        die_at_call(patch, OnDisk, "commit", step + 1)
        with pytest.raises(Died):
            compress_checkpoint(dense, output, config_of(method), max_memory="30KB")
    assert [path.name for path in tmp_path.iterdir()] == [".sliced.slicegpt"]
    assert json.loads((tmp_path / ".sliced.slicegpt" / "state.json").read_text())["done"] == step

    with monkeypatch.context() as patch:
        commits = []
        commit = OnDisk.commit
        patch.setattr(OnDisk, "commit", lambda *args: commits.append(args[-1]) or commit(*args))
        compress_checkpoint(dense, output, config_of(method), resume=True)
    assert commits == list(range(step + 1, STEPS[method] + 1))
    assert hash_files(output) == undisturbed(method)
    assert [path.name for path in tmp_path.iterdir()] == ["sliced"]


@pytest.mark.parametrize(
    "name, settings, step",
    [
        *((name, {"sparsity": 1 / 3}, step) for name in ("llama", "nemotron") for step in range(1, STEPS["refit"])),
        *(
            ("gpt2", {"sparsity": 0.0, "mlp_sparsity": 0.4}, step) for step in range(1, STEPS["refit"] - 2)
        ),  # None measures.
    ],
)
def test_a_stock_result_is_the_same_after_an_interruption(tmp_path, monkeypatch, name, settings, step):
    """The stock model takes over weights step by step: a head that is tied last of all, its matrix first."""
    build(name, float32, tie_word_embeddings=name != "nemotron").save_pretrained(tmp_path / "dense")
    config = SliceGPTConfig(architecture="stock", dataset=calibration(), **settings)
    compress_checkpoint(tmp_path / "dense", tmp_path / "undisturbed", config)
    with monkeypatch.context() as patch:
        die_at_call(patch, OnDisk, "commit", step + 1)
        with pytest.raises(Died):
            compress_checkpoint(tmp_path / "dense", tmp_path / "sliced", config)
    compress_checkpoint(tmp_path / "dense", tmp_path / "sliced", config, resume=True)
    assert hash_files(tmp_path / "sliced") == hash_files(tmp_path / "undisturbed")


@pytest.mark.parametrize("seed", range(4))
def test_a_resumed_run_reads_matrices_as_they_were(tmp_path, monkeypatch, seed):
    """Products round as matrices lie in memory, which shows where norms subtract the mean."""
    build("opt", float32).save_pretrained(tmp_path / "dense")
    config = config_of("paper", seed=seed, dataset=calibration(4))
    compress_checkpoint(tmp_path / "dense", tmp_path / "undisturbed", config)
    with monkeypatch.context() as patch:
        die_at_call(patch, OnDisk, "commit", 2)
        with pytest.raises(Died):
            compress_checkpoint(tmp_path / "dense", tmp_path / "sliced", config)
    compress_checkpoint(tmp_path / "dense", tmp_path / "sliced", config, resume=True)
    assert hash_files(tmp_path / "sliced") == hash_files(tmp_path / "undisturbed")


@pytest.mark.parametrize("calls", [1, 2, 7, 12, 18])
def test_a_run_that_dies_while_it_writes_weights(dense, undisturbed, tmp_path, monkeypatch, calls):
    with monkeypatch.context() as patch:
        die_at_call(patch, Shards, "write", calls)
        with pytest.raises(Died):
            compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"), resume=True)
    assert hash_files(tmp_path / "sliced") == undisturbed("refit")


@pytest.mark.parametrize("name", ["verify_checkpoint", "move_into_place"])
def test_a_run_that_dies_at_the_very_end(dense, undisturbed, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        die_at_call(patch, sys.modules[StreamedRun.__module__], name, 1)
        with pytest.raises(Died):
            compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert not (tmp_path / "sliced").exists()
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"), resume=True)
    assert hash_files(tmp_path / "sliced") == undisturbed("refit")


def test_a_run_that_fails_before_its_first_step_leaves_nothing(dense, tmp_path, monkeypatch):
    die_at_call(monkeypatch, OnDisk, "commit", 1)
    with pytest.raises(Died):
        compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_left_that_was_killed_before_its_first_step_goes(dense, undisturbed, tmp_path):
    (tmp_path / ".sliced.slicegpt" / "tensors").mkdir(parents=True)
    (tmp_path / ".sliced.slicegpt" / "tensors" / "000001.bin").write_bytes(b"half")
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert hash_files(tmp_path / "sliced") == undisturbed("refit")
    assert [path.name for path in tmp_path.iterdir()] == ["sliced"]


def test_resume_without_anything_to_take_up_starts(dense, undisturbed, tmp_path):
    compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"), resume=True)
    assert hash_files(tmp_path / "sliced") == undisturbed("refit")


@pytest.fixture
def interrupted(dense, tmp_path, monkeypatch):
    """Returns a copy of the checkpoint, and an output beside which an interrupted run left its state."""
    copy = tmp_path / "dense"
    shutil.copytree(dense, copy)
    with monkeypatch.context() as patch:
        die_at_call(patch, OnDisk, "commit", 5)
        with pytest.raises(Died):
            compress_checkpoint(copy, tmp_path / "sliced", config_of("refit"))
    return copy, tmp_path / "sliced"


def test_an_interrupted_run_is_not_overwritten(interrupted):
    with pytest.raises(FileExistsError, match="was interrupted; resume it with resume=True, --resume"):
        compress_checkpoint(*interrupted, config_of("refit"))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"sparsity": 0.5}, r"settings \(sparsity: 0.3\d+ then, 0.5 now\) and widths"),
        ({"seed": 7, "dtype": "bfloat16"}, r"settings \(seed: 0 then, 7 now; dtype: 'float32' then, 'bfloat16' now\)"),
        ({"dataset": calibration(2)}, "calibration data"),
    ],
)
def test_other_settings_and_data_are_refused(interrupted, change, named):
    with pytest.raises(ValueError, match=rf"had other {named}; resume it as it was begun, or delete .*\.sliced"):
        compress_checkpoint(*interrupted, config_of("refit", **change), resume=True)


def test_a_run_begins_anew_where_it_may_overwrite(interrupted, undisturbed, monkeypatch):
    interrupted[1].mkdir()
    (interrupted[1] / "config.json").write_text('{"slicegpt": {}}')
    compress_checkpoint(*interrupted, config_of("refit"), overwrite=True)
    assert hash_files(interrupted[1])["model.safetensors"] == undisturbed("refit")["model.safetensors"]
    assert not (interrupted[1].parent / ".sliced.slicegpt").exists()


def test_a_processor_that_multiplies_other_dtypes_takes_the_one_of_before(interrupted, hardware):
    hardware(bfloat16)
    with pytest.raises(ValueError, match=r"had other settings \(dtype: 'float32' then, 'bfloat16' now\); resume it"):
        compress_checkpoint(*interrupted, config_of("refit", dtype="auto"), resume=True)
    compress_checkpoint(*interrupted, config_of("refit", dtype="float32"), resume=True)


def test_another_model_is_refused(interrupted):
    weights = interrupted[0] / "model.safetensors"
    os.utime(weights, ns=(0, 0))
    with pytest.raises(ValueError, match="had other model; resume it"):
        compress_checkpoint(*interrupted, config_of("refit"), resume=True)


def test_other_places_for_activations_are_taken(interrupted, undisturbed):
    compress_checkpoint(*interrupted, config_of("refit"), resume=True, max_memory="1KB")
    assert hash_files(interrupted[1])["model.safetensors"] == undisturbed("refit")["model.safetensors"]


def test_a_damaged_state_is_refused(interrupted):
    folder = interrupted[1].parent / ".sliced.slicegpt"
    state = (folder / "state.json").read_text()
    (folder / "state.json").write_text(state[:-10])
    with pytest.raises(ValueError, match="state of the interrupted run is damaged; delete"):
        compress_checkpoint(*interrupted, config_of("refit"), resume=True)
    (folder.parent / "000001.bin").write_bytes(b"0" * 2**20)
    (folder / "state.json").write_text(re.sub(r'"name": "(\d+.bin)"', r'"name": "../../000001.bin"', state))
    with pytest.raises(ValueError, match="names '../../000001.bin', which is no tensor in .*do not trust it"):
        compress_checkpoint(*interrupted, config_of("refit"), resume=True)
    (folder / "state.json").write_text(state)
    for path in (folder / "tensors").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="has been cut short; delete its folder"):
        compress_checkpoint(*interrupted, config_of("refit"), resume=True)


def test_a_second_run_into_the_same_folder_is_refused(dense, tmp_path):
    with locked(tmp_path / "sliced"), pytest.raises(BlockingIOError, match="Another run is writing to .*sliced"):
        compress_checkpoint(dense, tmp_path / "sliced", config_of("refit"))
    assert list(tmp_path.iterdir()) == []
