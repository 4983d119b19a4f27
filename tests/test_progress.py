"""How far long work is, in lines and on terminals, and when a run of several phases ends."""

import pytest
import torch
from tiny import build, calibration
from transformers.utils import logging

from optimum_slicegpt import SliceGPTConfig, load_batches, progress
from optimum_slicegpt.progress import Forecast, Progress, announce, track
from optimum_slicegpt.slicing.run import Computation
from optimum_slicegpt.storage.base import InMemory
from optimum_slicegpt.storage.checkpoint import Checkpoint


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock in a list, which time follows."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def quiet():
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def work(clock, items, seconds):
    for _ in items:
        clock[0] += seconds


def test_a_line_at_the_beginning_and_one_every_half_minute(clock, capsys):
    work(clock, track(range(100), "Slicing", "layer"), 4)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "Slicing: 100 layers"
    assert lines[0] == "Slicing: 8 of 100 layers, about 6 min left"
    assert lines[-1] == "Slicing: 96 of 100 layers, about 16 s left"
    assert len(lines) == 12  # of 400 s


def test_a_phase_that_an_earlier_run_began(clock, capsys):
    work(clock, track(range(10), "Slicing", "layer", done=20), 20)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "Slicing: 30 layers, resumed after 20"
    assert second == "Slicing: 22 of 30 layers, about 3 min left"


def test_notes_stand_behind_the_time(clock, capsys):
    with Progress(3, "Recovering") as bar:
        bar.note = "loss 2.1"
        clock[0] += 60
        bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "Recovering: 3 steps",
        "Recovering: 1 of 3 steps, about 2 min left, loss 2.1",
    ]


def test_nothing_is_shown_to_who_wants_errors_alone_or_by_other_processes(clock, capsys, request):
    work(clock, track(range(9), "Slicing", shown=False), 60)
    request.getfixturevalue("quiet")
    work(clock, track(range(9), "Slicing"), 60)
    announce("Saving")
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    work(clock, track(range(4), "Slicing", "layer"), 30)
    announce("Saving")
    printed = capsys.readouterr().err
    assert "Slicing:  50%|" in printed and "| 2/4 [" in printed and ", about 1 min left]" in printed
    assert "layers" not in printed and "Saving" not in printed


def test_a_forecast_counts_the_phases_to_come(clock):
    """Everything takes twice as long as estimated: 20 + 60 + 10 seconds."""
    forecast = Forecast(lambda: {"Measuring": 10, "Slicing": 30, "Head": 5})
    left = forecast.begin("Measuring")
    clock[0] += 10
    assert left(0.5) == 10 + 60 + 10
    clock[0] += 10
    left = forecast.begin("Slicing")
    clock[0] += 45
    assert left(0.75) == 15 + 10


def test_a_forecast_of_a_resumed_run_leaves_out_what_was_done(clock):
    forecast = Forecast(lambda: {"Measuring": 10, "Slicing": 30, "Head": 5})
    left = forecast.begin("Slicing", 0.5)
    clock[0] += 15
    assert left(0.75) == 15 + 10


def test_a_run_names_its_phases(capsys):
    build("llama", torch.float32).compress(SliceGPTConfig(sparsity=1 / 3, dataset=calibration()))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Measuring: 2 layers", "Deciding: 1 step", "Slicing: 2 layers", "Head: 1 step"]


HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    "stored, products, dtype, computes_in, is_said",
    [
        ("float32", HALVES, "auto", "bfloat16", True),
        ("float32", HALVES, None, "float32", False),
        ("float32", (), "auto", "float32", False),
        ("bfloat16", HALVES, None, "bfloat16", False),
        ("bfloat16", (), None, "float32", True),
        ("bfloat16", (), "bfloat16", "bfloat16", False),
        ("float16", HALVES[:1], None, "float32", True),
        ("float64", HALVES, "auto", "float64", False),
    ],
)
def test_a_run_says_which_dtype_is_the_fastest(stored, products, dtype, computes_in, is_said, hardware, capsys):
    hardware(*products)
    model, config = build("llama", getattr(torch, stored)), SliceGPTConfig(dtype=dtype)
    run = Computation(model, load_batches(calibration()), config, InMemory(model, config))
    assert str(run.dtype) == f"torch.{computes_in}"
    assert capsys.readouterr().err == f"Computing in {computes_in}, the fastest here\n" * is_said


def test_checking_a_checkpoint_shows_no_bar(tmp_path, capsys, monkeypatch):
    """The bar of loading it is the only one."""
    build("llama", torch.float32).save_pretrained(tmp_path)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    capsys.readouterr()
    Checkpoint(tmp_path, "auto")
    assert capsys.readouterr().err == ""
