"""Runs of `recover` that are cut off and resumed, and what is refused before anything changes."""

import tempfile

import pytest
import torch
from peft import get_peft_model
from recovering import TEXTS, changed_names, copy_weights, fresh_model, quick_config, same_weights
from tiny import build, calibration, paper
from transformers import AutoModelForSequenceClassification

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, recover
from optimum_slicegpt.recovery.adapters import lora_config
from optimum_slicegpt.recovery.packing import load_sequences
from optimum_slicegpt.recovery.resuming import last_checkpoint
from optimum_slicegpt.recovery.trainer import RecoveryTrainer


# Runs that are cut off


def cut_off_at(step, monkeypatch):
    """Interrupts the training in the middle of a step."""
    train = RecoveryTrainer.training_step

    def stops(self, *args):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(RecoveryTrainer, "training_step", stops)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(full, tiny_tokenizer, tmp_path, monkeypatch):
    # 8 steps of 4 sequences are more than one pass over 28, and dropout draws at random.
    config = quick_config(nsamples=32, max_steps=8, full=full, lora_dropout=0.2)
    undisturbed = recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path / "whole")
    model = fresh_model()
    before = copy_weights(model)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off_at(5, patch)
        recover(model, tiny_tokenizer, config, checkpoints=tmp_path / "cut")
    if not full:
        assert not changed_names(model, before) and all(parameter.requires_grad for parameter in model.parameters())
    assert last_checkpoint(tmp_path / "cut").name == "checkpoint-4"
    resumed = recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path / "cut", resume=True)
    assert same_weights(resumed, undisturbed)
    records = [each.config.slicegpt["recovery"] for each in (resumed, undisturbed)]
    for record in records:
        record.pop("seconds")
    assert records[0] == records[1]


def test_patience_counts_on_over_a_cut(tiny_tokenizer, tmp_path, monkeypatch):
    config = quick_config(max_steps=40, eval_steps=1, learning_rate=0.3, patience=4)
    undisturbed = recover(fresh_model(), tiny_tokenizer, config)
    best = undisturbed.config.slicegpt["recovery"]["best_step"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off_at(best + 2, patch)
        recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path)
    resumed = recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path, resume=True)
    assert resumed.config.slicegpt["recovery"]["steps"] == best + 4
    assert same_weights(resumed, undisturbed)


@pytest.mark.parametrize("kwargs", [{"max_steps": 3}, {"max_steps": 40, "learning_rate": 0.3, "patience": 1}])
def test_a_run_that_was_over_is_not_trained_further(kwargs, tiny_tokenizer, tmp_path, monkeypatch):
    """A run may be killed between its last checkpoint and its output, whether it took all steps or ended early."""
    config = quick_config(eval_steps=1, **kwargs)
    whole = recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path)
    monkeypatch.setattr(RecoveryTrainer, "training_step", None)
    resumed = recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path, resume=True)
    assert same_weights(resumed, whole)
    assert resumed.config.slicegpt["recovery"]["steps"] == whole.config.slicegpt["recovery"]["steps"]


@pytest.mark.parametrize("state", [None, '{"epoch": 0.'])
def test_half_a_checkpoint_is_passed_over(state, tiny_tokenizer, tmp_path, monkeypatch):
    config = quick_config()
    undisturbed = recover(fresh_model(), tiny_tokenizer, config)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off_at(5, patch)
        recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path)
    file = tmp_path / "checkpoint-4" / "trainer_state.json"
    file.unlink() if state is None else file.write_text(state)
    (tmp_path / "checkpoint-4" / "adapter_model.safetensors").unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    assert same_weights(recover(fresh_model(), tiny_tokenizer, config, checkpoints=tmp_path, resume=True), undisturbed)


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_again(tiny_tokenizer, tmp_path, monkeypatch):
    undisturbed = recover(fresh_model(), tiny_tokenizer, quick_config())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off_at(1, patch)
        recover(fresh_model(), tiny_tokenizer, quick_config(), checkpoints=tmp_path)
    assert last_checkpoint(tmp_path) is None
    assert same_weights(
        recover(fresh_model(), tiny_tokenizer, quick_config(), checkpoints=tmp_path, resume=True), undisturbed
    )


def test_a_temporary_folder_for_checkpoints_is_gone_afterwards(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    recover(fresh_model(), tiny_tokenizer, quick_config(max_steps=2))
    cut_off_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        recover(fresh_model(), tiny_tokenizer, quick_config())
    assert list(tmp_path.iterdir()) == []


# A teacher that learns first


def adapting(**kwargs):
    return quick_config(distill=True, adapt_teacher=True, lora_dropout=0.2, **kwargs)


def dense():
    return build("llama", torch.float32, vocab_size=98)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_teacher_that_learns_first_is_left_as_it_was(full, tiny_tokenizer):
    teacher, model = dense().train(), fresh_model()
    before = copy_weights(teacher)
    recover(model, tiny_tokenizer, adapting(full=full), teacher=teacher)
    assert teacher.state_dict().keys() == before.keys() and not changed_names(teacher, before)
    assert teacher.training and teacher.config.use_cache
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    held_out = load_sequences(TEXTS, tiny_tokenizer, nsamples=1000, seqlen=16, held_out=4).held_out
    learned = model.config.slicegpt["recovery"]["teacher_perplexity"]
    assert learned < (0.99 if full else 0.8) * evaluate_perplexity(teacher, held_out).perplexity


def test_the_student_learns_from_what_the_teacher_learned(tiny_tokenizer):
    after = {}
    for adapt in (False, True):
        model = fresh_model()
        recover(
            model, tiny_tokenizer, quick_config(distill=True, adapt_teacher=adapt, distill_weight=1.0), teacher=dense()
        )
        after[adapt] = model.config.slicegpt["recovery"]["perplexity_after"]
    assert after[True] < 0.9 * after[False]


@pytest.mark.parametrize("learner", ["teacher", "student"])
def test_a_run_with_a_teacher_that_learns_is_cut_off(learner, tiny_tokenizer, tmp_path, monkeypatch):
    undisturbed = recover(fresh_model(), tiny_tokenizer, adapting(), teacher=dense())
    train, teacher = RecoveryTrainer.training_step, dense()
    before = copy_weights(teacher)

    def stops(self, *args):
        if self.state.global_step == 3 and (self.teacher is None) == (learner == "teacher"):
            raise KeyboardInterrupt
        return train(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecoveryTrainer, "training_step", stops)
        recover(fresh_model(), tiny_tokenizer, adapting(), teacher=teacher, checkpoints=tmp_path)
    assert not changed_names(teacher, before) and teacher.config.use_cache
    with pytest.raises(ValueError, match="Checkpoints of an earlier run are in"):
        recover(fresh_model(), tiny_tokenizer, adapting(), teacher=teacher, checkpoints=tmp_path)
    resumed = recover(fresh_model(), tiny_tokenizer, adapting(), teacher=teacher, checkpoints=tmp_path, resume=True)
    assert same_weights(resumed, undisturbed)


def test_a_teacher_that_learns_and_carries_adapters(tiny_tokenizer, tmp_path):
    teacher = dense()
    get_peft_model(teacher, lora_config(teacher, quick_config()))
    with pytest.raises(ValueError, match="The teacher carries PEFT adapters; call merge_and_unload"):
        recover(fresh_model(), tiny_tokenizer, adapting(), teacher=teacher, checkpoints=tmp_path / "none")
    assert not (tmp_path / "none").exists()


# What is refused, before anything changes


@pytest.fixture
def begun(tiny_tokenizer, tmp_path):
    """Returns a folder with the checkpoints of a whole run."""
    recover(fresh_model(), tiny_tokenizer, quick_config(max_steps=1), checkpoints=tmp_path / "begun")
    return tmp_path / "begun"


@pytest.mark.parametrize(
    "kwargs, resume, message",
    [
        ({}, False, "Checkpoints of an earlier run are in '.*begun'; resume it, or give another folder"),
        ({"max_steps": 2}, True, "was begun with max_steps=1, and this one has 2; resume with the same"),
        ({"dataset": TEXTS[1:]}, True, "was begun with data='"),
    ],
)
def test_runs_are_not_mixed(kwargs, resume, message, begun, tiny_tokenizer):
    with pytest.raises(ValueError, match=message):
        recover(
            fresh_model(),
            tiny_tokenizer,
            quick_config(**{"max_steps": 1} | kwargs),
            checkpoints=begun,
            resume=resume,
        )


def test_another_model_or_another_teacher_does_not_go_on(begun, tiny_tokenizer, tmp_path):
    other = fresh_model()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    with pytest.raises(ValueError, match="was begun with model='.*', and this one has '.*'; resume with the same"):
        recover(other, tiny_tokenizer, quick_config(max_steps=1), checkpoints=begun, resume=True)

    config, teachers = quick_config(max_steps=1, distill=True), [build("llama", vocab_size=98) for _ in range(2)]
    recover(fresh_model(), tiny_tokenizer, config, teacher=teachers[0], checkpoints=tmp_path / "taught")
    with torch.no_grad():
        teachers[1].lm_head.weight[0, 0] += 1
    with pytest.raises(ValueError, match="was begun with teacher='"):
        recover(
            fresh_model(),
            tiny_tokenizer,
            config,
            teacher=teachers[1],
            checkpoints=tmp_path / "taught",
            resume=True,
        )


def test_a_damaged_record_is_none(begun, tiny_tokenizer):
    (begun / "recovery.json").write_text("{")
    with pytest.raises(ValueError, match="No recovery was begun in '.*begun'"):
        recover(fresh_model(), tiny_tokenizer, quick_config(max_steps=1), checkpoints=begun, resume=True)


@pytest.mark.parametrize(
    "checkpoints, message",
    [(None, "resume=True without checkpoints"), ("absent", "No recovery was begun in '.*absent'; give its folder")],
)
def test_nothing_to_resume(checkpoints, message, tiny_tokenizer, tmp_path):
    folder = checkpoints and tmp_path / checkpoints
    with pytest.raises(ValueError, match=message):
        recover(fresh_model(), tiny_tokenizer, quick_config(), checkpoints=folder, resume=True)
    assert not (tmp_path / "absent").exists()


def carries_adapters():
    model = fresh_model()
    get_peft_model(model, lora_config(model, quick_config()))
    return model


def classifier():
    return AutoModelForSequenceClassification.from_config(fresh_model().config)


@pytest.mark.parametrize(
    "model, config, message",
    [
        (
            lambda: build("llama", torch.float32),
            quick_config(),
            "This LlamaForCausalLM is not sliced: its configuration has no 'slicegpt'; slice the model first.",
        ),
        (carries_adapters, quick_config(), "The model carries PEFT adapters"),
        (
            lambda: fresh_model(dtype=torch.bfloat16),
            quick_config(full=True),
            "full=True with weights in torch.bfloat16",
        ),
        (
            lambda: build("llama", torch.float32).compress(SliceGPTConfig(sparsity=0.3, dataset=calibration())),
            quick_config(shortcuts=True),
            "shortcuts=True, and this model has none",
        ),
        (classifier, quick_config(), "Cannot recover a SlicedLlamaForSequenceClassification; load"),
        (fresh_model, quick_config(dataset=["w1 w2"]), "makes 0 sequences of 16 tokens"),
        (fresh_model, quick_config(distill=True), "The dense model is needed"),
    ],
)
def test_models_that_cannot_be_recovered(model, config, message, tiny_tokenizer):
    model = model()
    before = copy_weights(model)
    with pytest.raises(ValueError, match=message):
        recover(model, tiny_tokenizer, config)
    assert model.state_dict().keys() == before.keys() and not changed_names(model, before)


def test_a_tokenizer_of_another_model(tiny_tokenizer):
    model = build("llama", torch.float32, vocab_size=8).compress(
        paper(sparsity=0.3, dataset=[{"input_ids": [[3, 4, 5] * 9]}])
    )
    with pytest.raises(ValueError, match=r"Token ids from 3 to 9 are not all in \[0, 8\)"):
        recover(model, tiny_tokenizer, quick_config())
