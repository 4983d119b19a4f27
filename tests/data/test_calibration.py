"""Calibration data of several kinds."""

from pathlib import Path

import pytest
import torch
from command_line import parse
from tiny import build

from optimum_slicegpt import SliceGPTConfig, load_batches
from optimum_slicegpt.data.calibration import calibration_batches
from optimum_slicegpt.data.generated import generate_batches
from optimum_slicegpt.data.texts import load_texts
from optimum_slicegpt.streaming import compress_checkpoint


@pytest.fixture
def model():
    return build("llama", torch.float32, vocab_size=98)


def batches_of(model, tokenizer, *datasets, **settings):
    config = SliceGPTConfig(dataset=list(datasets), **{"nsamples": 6, "seqlen": 16, "batch_size": 2} | settings)
    return calibration_batches(model, config, tokenizer)


def rows(batches):
    return [row.tolist() for batch in batches for row in batch["input_ids"]]


def test_each_gives_its_share_in_turn(model, cli_files, tiny_tokenizer):
    path = cli_files / "train.txt"
    found = batches_of(model, tiny_tokenizer, "python-docs", str(path), "self", nsamples=7)
    assert found.source == "python-docs, train.txt, self"
    docs, text = (
        rows(load_batches(source, tiny_tokenizer, nsamples=count, seqlen=16))
        for source, count in (("python-docs", 3), (path, 2))
    )
    own = rows(generate_batches(model, nsamples=2, seqlen=16, batch_size=2))
    assert rows(found) == [docs[0], text[0], own[0], docs[1], text[1], own[1], docs[2]]
    assert [len(batch["input_ids"]) for batch in found] == [2, 2, 2, 1]


def test_a_short_text_has_batches_of_its_own(model, tmp_path, tiny_tokenizer, caplog):
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    found = batches_of(model, tiny_tokenizer, "python-docs", tmp_path / "short.txt")
    assert [tuple(batch["input_ids"].shape) for batch in found] == [(1, 16), (1, 3), (2, 16)]
    assert "'short.txt' is too short for 3 chunks of 16 tokens: using 1 of 3" in caplog.text


def test_a_model_says_what_it_was_sliced_by(model, cli_files, tiny_tokenizer):
    config = SliceGPTConfig(sparsity=1 / 3, dataset=["self", cli_files / "train.txt"], nsamples=6, seqlen=16)
    assert SliceGPTConfig.from_dict(config.to_dict()).dataset == ["self", str(cli_files / "train.txt")]
    record = model.compress(config, tiny_tokenizer).config.slicegpt
    assert record["calibration"] == {"source": "self, train.txt", "tokens": 96}


def test_one_name_in_a_list_is_that_dataset(model, tiny_tokenizer):
    alone = load_batches("python-docs", tiny_tokenizer, nsamples=6, seqlen=16)
    assert rows(batches_of(model, tiny_tokenizer, "python-docs")) == rows(alone)


@pytest.mark.parametrize(
    "datasets, message",
    [
        (["self", "A document."], "Unknown dataset 'A document.'"),
        (["self", {"input_ids": [1, 2]}], "A mixture of datasets has names and paths; got dict among them"),
        (["self"] * 7, "nsamples=6 is less than the number of datasets to mix, 7"),
    ],
)
def test_what_is_no_mixture(model, tiny_tokenizer, datasets, message):
    with pytest.raises(ValueError, match=message):
        batches_of(model, tiny_tokenizer, *datasets)


def test_nothing_is_written_before_the_rest_is_found(model, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(model, "generate", lambda *args, **kwargs: pytest.fail("text is written"))
    with pytest.raises(FileNotFoundError, match="missing.txt"):
        batches_of(model, tiny_tokenizer, "self", "missing.txt")


def test_names_are_no_texts():
    with pytest.raises(ValueError, match=r"\['c4'\] among 2 texts: names of datasets, which only slicing mixes"):
        load_texts(["c4", "A document."])


def test_streaming_refuses_a_mixture_with_own_text(tmp_path):
    with pytest.raises(ValueError, match="dataset='self' has the whole model write text"):
        compress_checkpoint("model", tmp_path / "sliced", SliceGPTConfig(dataset=["python-docs", "self"]))


def test_names_and_paths_on_the_command_line(tmp_path):
    arguments = ("compress", "--model", "dense", "--output", tmp_path, "--dataset")
    assert parse(*arguments, "self", "a.txt").dataset == ["self", Path("a.txt")]
    assert parse(*arguments, "self").dataset == "self"
