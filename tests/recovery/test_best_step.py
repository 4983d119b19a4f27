"""`recover`: training ends early, and the best of its steps is kept, at the best scale."""

import json
import math

import numpy as np
import pytest
import torch
from recovering import TEXTS, changed_names, copy_weights, fresh_model, quick_config
from tiny import build
from transformers import EvalPrediction

from optimum_slicegpt import evaluate_perplexity, recover
from optimum_slicegpt.recovery import training
from optimum_slicegpt.recovery.packing import load_sequences
from optimum_slicegpt.recovery.trainer import HeldOut, mean_losses


def test_training_ends_early_and_the_best_is_kept(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SCALES", ())
    model = fresh_model()
    config = quick_config(max_steps=40, eval_steps=1, learning_rate=0.3, patience=2)
    recover(model, tiny_tokenizer, config, checkpoints=tmp_path)
    record = model.config.slicegpt["recovery"]
    assert record["steps"] == record["best_step"] + 2 < 40
    log = json.loads((tmp_path / f"checkpoint-{record['steps']}" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["eval_held_out"] for entry in log if "eval_held_out" in entry][1:]
    assert min(losses) == losses[record["best_step"] - 1] == pytest.approx(math.log(record["perplexity_after"]))
    sequences = load_sequences(TEXTS, tiny_tokenizer, nsamples=1000, seqlen=16, held_out=4)
    assert evaluate_perplexity(model, sequences.held_out).nll == pytest.approx(min(losses), rel=1e-5)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == sorted(
        f"checkpoint-{record[key]}" for key in ("steps", "best_step")
    )


def test_a_loss_that_does_not_fall_is_told(tiny_tokenizer, caplog):
    model, teacher = fresh_model(), build("llama", torch.float32, vocab_size=98)
    before = copy_weights(model)
    recover(model, tiny_tokenizer, quick_config(distill=True, max_steps=2, learning_rate=30.0), teacher=teacher)
    assert "The held-out loss did not fall, from" in caplog.text
    record = model.config.slicegpt["recovery"]
    assert record["adapter_scale"] == 0 and not changed_names(model, before)
    assert record["held_out_losses"]["after"] == record["held_out_losses"]["before"]


@pytest.mark.parametrize("keep_adapter", [False, True])
def test_adapters_that_go_too_far_are_scaled_down(keep_adapter, tiny_tokenizer, monkeypatch):
    config = quick_config(max_steps=2, eval_steps=2, learning_rate=1.0, keep_adapter=keep_adapter)
    records = []
    for scales in ((), training.SCALES):
        with monkeypatch.context() as patch:
            patch.setattr(training, "SCALES", scales)
            model = recover(fresh_model(), tiny_tokenizer, config)
        records.append(model.config.slicegpt["recovery"])
    assert records[1]["adapter_scale"] in (0.25, 0.5, 0.75)
    assert records[1]["perplexity_after"] < records[0]["perplexity_after"]
    held_out = load_sequences(TEXTS, tiny_tokenizer, nsamples=1000, seqlen=16, held_out=4).held_out
    measured = evaluate_perplexity(model, held_out).perplexity
    assert measured == pytest.approx(records[1]["perplexity_after"], rel=1e-5)


def test_the_best_is_best_for_the_mean_of_all_kinds():
    kinds = ("texts", "self")
    sums = np.array([[8.0, 10.0, 5.0, 0.0], [2.0, 20.0, 5.0, 0.0], [3.0, 6.0, 1.0, 1.0]], dtype=np.float32)
    found = mean_losses(EvalPrediction(predictions=sums, label_ids=None), kinds)
    assert found == pytest.approx(
        {"loss on texts": 1.0, "loss on self": 3.0, "held_out": 2.0, "perplexity": math.exp((3 + 6) / 2)}
    )
    held_out = HeldOut.from_metrics({f"eval_{name}": value for name, value in found.items()})
    assert held_out.losses == {"texts": 1, "self": 3} and held_out.mean == 2


@pytest.mark.parametrize("full", [False, True])
def test_a_loss_that_is_not_finite(full, tiny_tokenizer):
    model = fresh_model()
    before = copy_weights(model)
    with pytest.raises(ValueError, match="nats before recovery and never finite afterwards. Lower learning_rate"):
        recover(model, tiny_tokenizer, quick_config(learning_rate=1e38, full=full))
    assert full or not changed_names(model, before)
