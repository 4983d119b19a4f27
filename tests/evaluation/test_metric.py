"""The perplexity metric, as `evaluate` loads it from its path. `conftest.py` has set HF_HUB_OFFLINE."""

import copy
import math

import evaluate
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity
from optimum_slicegpt.evaluation.metrics import PERPLEXITY


TEXTS = ["w5 w6 w7 w8 w9 w10", "w11 w12", "w13 w14 w15", "w16"]


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that nothing is found by a relative path
    return evaluate.load(PERPLEXITY, cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("metric") / "sliced"
    model = tiny.build("llama", torch.float32, vocab_size=98)
    model.compress(SliceGPTConfig(sparsity=0.3, dataset=tiny.calibration())).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def expected(folder, start=(97,)):
    """Computes the perplexity of each text from the model's own loss."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = [torch.tensor([[*start, *(int(word[1:]) for word in text.split())]]) for text in TEXTS]
    return [model(input_ids=row, labels=row).loss.exp().item() for row in ids if row.shape[1] > 1]


def test_of_a_sliced_folder(metric, folder):
    found = metric.compute(predictions=TEXTS, model_id=str(folder))
    assert found["perplexities"] == pytest.approx(expected(folder), rel=1e-5)
    assert found["mean_perplexity"] == pytest.approx(sum(expected(folder)) / 4, rel=1e-5)
    assert found["ntokens"] == 6 + 2 + 3 + 1
    nll = sum(math.log(each) * count for each, count in zip(expected(folder), (6, 2, 3, 1), strict=True)) / 12
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert found["stderr"] > 0


def test_of_an_object(metric, folder, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    options = {"tokenizer": tiny_tokenizer, "batch_size": 2, "device": "cpu"}
    found = metric.compute(predictions=TEXTS, model_id=model, **options)
    assert found["perplexities"] == pytest.approx(expected(folder), rel=1e-5)


def test_without_a_start_token(metric, folder):
    found = metric.compute(predictions=TEXTS[:3], model_id=str(folder), add_start_token=False)
    assert found["perplexities"] == pytest.approx(expected(folder, start=()), rel=1e-5)


def test_texts_are_cut(metric, folder):
    found = metric.compute(predictions=TEXTS[:1], model_id=str(folder), max_length=4)
    ids = {"input_ids": [97, 5, 6, 7]}
    assert found["perplexity"] == evaluate_perplexity(AutoModelForCausalLM.from_pretrained(folder), [ids]).perplexity


def test_predictions_may_be_added_one_by_one(metric, folder):
    for text in TEXTS:
        metric.add(predictions=text)
    assert metric.compute(model_id=str(folder))["perplexities"] == pytest.approx(expected(folder), rel=1e-5)


def test_it_describes_itself(metric):
    assert metric.name == "perplexity"
    assert "model_id (`str` or `PreTrainedModel`)" in metric.inputs_description
    assert list(metric.features) == ["predictions"]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["w5 w6", ""], {}, r"predictions\[1\]='' leaves no token to predict with add_start_token=True"),
        (["w5"], {"add_start_token": False}, r"predictions\[0\]='w5' leaves no token"),
        (["w5"], {"max_length": 1}, r"predictions\[0\]='w5' leaves no token .* max_length=1; leave it out, or allow"),
        (["w5"], {"tokenizer": "no/such/tokenizer"}, "No tokenizer could be loaded from 'no/such/tokenizer'"),
    ],
)
def test_texts_that_cannot_be_measured(metric, folder, texts, options, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=texts, model_id=str(folder), **options)


def test_a_tokenizer_without_a_beginning(metric, folder, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="tokenizer has no bos_token; use add_start_token=False"):
        metric.compute(predictions=TEXTS, model_id=str(folder), tokenizer=tokenizer)
