"""Values that a `RecoveryConfig` takes, and those that it refuses."""

import math
from pathlib import Path

import pytest

from optimum_slicegpt import RecoveryConfig, recover


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"distill": "no"}, "distill='no'; give True or False"),
        ({"dataset": None}, "dataset=None; give a name, paths, texts or conversations"),
        ({"nsamples": 0}, "nsamples=0; give a positive integer"),
        ({"seqlen": 1.5}, "seqlen=1.5; give a positive integer"),
        ({"lora_rank": True}, "lora_rank=True; give a positive integer"),
        ({"batch_size": 0}, "batch_size=0; give a positive integer"),
        ({"gradient_accumulation": 0}, "gradient_accumulation=0; give a positive integer"),
        ({"max_steps": 0}, "max_steps=0; give a positive integer, or None for as many as epochs says"),
        ({"patience": 0}, "patience=0; give a positive integer, or None for no early end"),
        ({"held_out": 0}, r"held_out=0; give a number of sequences, or a share of them in \(0, 1\)"),
        ({"eval_steps": 1.5}, r"eval_steps=1.5; give a number of steps, or a share of them in \(0, 1\)"),
        ({"lora_alpha": 0}, "lora_alpha=0; give a positive number"),
        ({"epochs": -1}, "epochs=-1; give a positive number"),
        ({"temperature": math.inf}, "temperature=inf; give a positive number"),
        ({"learning_rate": 0}, "learning_rate=0; give a positive number"),
        ({"lora_dropout": 1}, r"lora_dropout=1; give a share in \[0, 1\)"),
        ({"distill_weight": 2}, r"distill_weight=2; give a share in \[0, 1\]"),
        ({"seed": -1}, "seed=-1; give a non-negative integer"),
        ({"own_tokens": -1}, "own_tokens=-1; give a non-negative integer"),
        ({"own_tokens": 9, "distill": False}, "The dense model writes text only where it is the teacher"),
        ({"dataset": "self", "distill": False}, "The dense model writes text only where it is the teacher"),
        ({"teacher_dtype": "int8"}, "teacher_dtype='int8'; choose one of float16"),
        ({"teacher_device": "toaster"}, "teacher_device='toaster' is not a torch device"),
        (
            {"adapt_teacher": True, "distill": False},
            "adapt_teacher=True with distill=False, which has no teacher; set distill=True",
        ),
        ({"full": True, "keep_adapter": True}, "keep_adapter=True with full=True, which trains everything"),
        ({"full": True, "shortcuts": True}, "shortcuts=True with full=True, which trains everything"),
    ],
)
def test_values_that_cannot_be(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RecoveryConfig(**kwargs)


def test_data_that_json_can_hold():
    def unread():
        pytest.fail("it may be readable once only")
        yield

    for dataset, held in (
        ("auto", "auto"),
        (Path("a.txt"), "a.txt"),
        (["a.txt", Path("b.txt")], ["a.txt", "b.txt"]),
        ([{"text": "w1"}], None),
        (unread(), None),
    ):
        assert RecoveryConfig(dataset=dataset).to_dict()["dataset"] == held


def test_learning_rates_by_default():
    assert RecoveryConfig().learning_rate == 1e-3
    assert RecoveryConfig(full=True).learning_rate == 2e-5


def test_adapters_are_scaled_by_one_unless_told_otherwise():
    assert RecoveryConfig(lora_rank=8).lora_alpha == 8
    assert RecoveryConfig(lora_rank=8, lora_alpha=2).lora_alpha == 2


def test_by_default_the_dense_model_alone_is_learned_from():
    config = RecoveryConfig()
    assert (config.distill, config.distill_weight, config.temperature, config.epochs) == (True, 1, 1, 1)
    assert config.nsamples * config.seqlen < 400_000


def test_settings_that_are_none():
    with pytest.raises(TypeError, match=r"config must be a RecoveryConfig, such as .*; got \{'nsamples': 4\}\.$"):
        recover(None, None, {"nsamples": 4})
