"""What a model lost on text that its run did not see, and what becomes of one that lost too much."""

import copy
import math

import pytest
import torch
from pretend_gpu import pretend_gpu
from tiny import build, calibration, tokens

from optimum_slicegpt import SliceGPTConfig, evaluate_losses
from optimum_slicegpt.data.batches import load_batches
from optimum_slicegpt.data.calibration import held_out_batches
from optimum_slicegpt.evaluation import check
from optimum_slicegpt.evaluation.perplexity import Losses
from optimum_slicegpt.reports.model_card import model_card


TEXT = " ".join(f"w{token}" for token in tokens(1, 2000, seed=5)[0].tolist())
SIZES = {"nsamples": 8, "seqlen": 16, "own_tokens": 0}


def dense():
    return build("llama", torch.float32, vocab_size=98)


@pytest.mark.parametrize("seed", [0, None])
def test_held_out_chunks_are_those_that_are_left(tiny_tokenizer, seed):
    settings = {"tokenizer": tiny_tokenizer, "nsamples": 5, "seqlen": 16, "seed": seed}
    drawn, left = (load_batches([TEXT], **settings, held_out=count) for count in (0, 1000))
    drawn, left = ({tuple(row.tolist()) for batch in each for row in batch["input_ids"]} for each in (drawn, left))
    assert len(drawn) == 5 and len(left) > 5 and not drawn & left
    assert load_batches(["w1 w2 w3 w4"], tiny_tokenizer, nsamples=2, seqlen=2, held_out=4).batches == []


def test_every_kind_of_text_has_some(tiny_tokenizer, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT)
    config = SliceGPTConfig(dataset=["python", tmp_path / "a.txt"], nsamples=8, seqlen=16, own_tokens=32)
    kinds = held_out_batches(dense(), config, tiny_tokenizer)
    assert [part.source for part in kinds] == ["python", "a.txt", "self"]
    assert held_out_batches(dense(), SliceGPTConfig(dataset=calibration()), tiny_tokenizer) == []


def test_what_is_found_is_what_evaluation_finds(tiny_tokenizer, caplog):
    model, before = dense(), dense()
    config = SliceGPTConfig(sparsity=0.25, dataset=[TEXT], **SIZES)
    model.compress(config, tiny_tokenizer, check=True)
    found = model.config.slicegpt["check"]
    (text,) = held_out_batches(before, config, tiny_tokenizer)
    losses = [evaluate_losses(each, text) for each in (before, model)]
    expected = losses[1].difference(losses[0])
    about = found["texts"]["texts"]
    assert about["loss"] == pytest.approx(expected.nll, abs=1e-4) == found["loss"]
    assert about["stderr"] == pytest.approx(expected.stderr, abs=1e-4)
    assert about["tokens"] == sum(len(batch["input_ids"]) * 15 for batch in text)
    assert [*found["answers"]] == ["What is the capital of France?", "Write one sentence about the sea."]
    assert all({*each} == {"dense", "sliced"} for each in found["answers"].values())
    assert f"sliced less dense, in nats per token: {about['loss']:+.3f} ± " in str(model_card(model))
    assert ("THE MODEL IS DAMAGED" in caplog.text) == (expected.nll > 0.5)


@pytest.mark.parametrize("products, expected", [((), torch.float32), ((torch.bfloat16,), torch.bfloat16)])
def test_a_check_computes_in_a_dtype_that_the_processor_multiplies(products, expected, tiny_tokenizer, hardware):
    hardware(*products)
    model, seen = build("llama", torch.bfloat16, vocab_size=98), set()
    model.model.layers[0].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    check.Check(model, SliceGPTConfig(dataset=[TEXT], **SIZES), tiny_tokenizer)
    assert seen == {expected} and model.dtype == torch.bfloat16


@pytest.mark.parametrize("memory", [2**40, 100_000])
def test_a_gpu_checks_as_the_cpu_does(memory, tiny_tokenizer):
    """It has room for all of the model, or for one layer at a time."""
    found = []
    for device in ("cpu", "cuda"):
        with pretend_gpu(memory) as gpu:
            config = SliceGPTConfig(sparsity=0.25, dataset=[TEXT], device=device, **SIZES)
            model = dense().compress(config, tiny_tokenizer, check=True)
        found.append(model.config.slicegpt["check"])
        assert (device == "cuda") == bool(gpu.moves)
    assert found[0] == found[1]


@pytest.mark.parametrize("template", ["{{ raise_exception('No!') }}", "{{ messages[0].content + 1 }}"])
def test_prompts_that_a_template_refuses_are_asked_as_they_are(tiny_tokenizer, template):
    tokenizer, model = copy.deepcopy(tiny_tokenizer), dense()
    tokenizer.chat_template = template
    assert check.answer(model, tokenizer, "w1 w2") == check.answer(model, tiny_tokenizer, "w1 w2") != ""
    tokenizer.chat_template = "{{ messages[0].missing }}"  # which leaves no token
    assert check.answer(model, tokenizer, "w1 w2") == ""


def test_nothing_deleted_is_nothing_lost(tiny_tokenizer, caplog):
    model = dense()
    config = SliceGPTConfig(parameter_reduction=0.0, refit=False, dataset=[TEXT], **SIZES)
    model.compress(config, tiny_tokenizer, check=True)
    assert abs(model.config.slicegpt["check"]["loss"]) < 1e-3 and "DAMAGED" not in caplog.text
    assert all(each["dense"] == each["sliced"] for each in model.config.slicegpt["check"]["answers"].values())


def test_a_model_that_lost_too_much_stays_dense(caplog):
    model = dense()
    with torch.no_grad():
        model.lm_head.weight *= 20  # It is sure of what it says, and at home in nothing but its own text.
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = SliceGPTConfig(widths=4, dataset="self", nsamples=8, seqlen=16)
    with pytest.raises(ValueError, match=r"The sliced model loses .* nats per token, more than refuse_above=0.5; "):
        model.compress(config, refuse_above=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.compress(config, check=True)
    loss = model.config.slicegpt["check"]["loss"]
    assert loss > 0.5
    assert f"THE MODEL IS DAMAGED: it loses {loss:.2f} nats per token, {math.exp(loss):.1f} times" in caplog.text


def test_a_limit_takes_text_to_measure_it_on(tiny_tokenizer):
    model = dense()
    with pytest.raises(
        ValueError, match=r"refuse_above=0.5, but there is no text .*, lower nsamples, or leave it out"
    ):
        model.compress(SliceGPTConfig(sparsity=0.25, dataset=calibration()), refuse_above=0.5)
    assert not hasattr(model.config, "slicegpt")
    config = SliceGPTConfig(sparsity=0.25, refit=False, dataset=(text for text in [TEXT]), **SIZES)  # readable once
    model.compress(config, tiny_tokenizer, check=True)
    assert [*model.config.slicegpt["check"]["texts"]] == ["texts"]


def test_a_loss_that_is_not_finite_is_refused(tiny_tokenizer, monkeypatch):
    model = dense()
    config = SliceGPTConfig(sparsity=0.25, dataset=[TEXT], **SIZES)
    measured = check.Check._measure

    def broken(self, model):
        losses, answers = measured(self, model)
        if getattr(model.config, "slicegpt", None):
            losses[0] = Losses(losses[0].sums * math.nan, losses[0].counts)
        return losses, answers

    monkeypatch.setattr(check.Check, "_measure", broken)
    with pytest.raises(ValueError, match="The sliced model loses inf nats per token"):
        model.compress(config, tiny_tokenizer, refuse_above=5.0)
