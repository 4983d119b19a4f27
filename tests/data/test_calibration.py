"""Calibration data of several kinds."""

from pathlib import Path

import pytest
import torch
from command_line import parse
from tiny import build, tokens
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, load_batches
from optimum_slicegpt.data import calibration
from optimum_slicegpt.data.batches import TokenBatches
from optimum_slicegpt.data.calibration import calibration_batches
from optimum_slicegpt.data.generated import own_text
from optimum_slicegpt.data.texts import load_texts
from optimum_slicegpt.storage.checkpoint import Checkpoint


@pytest.fixture
def model():
    return build("llama", torch.float32, vocab_size=98)


def batches_of(model, tokenizer, *datasets, **settings):
    config = SliceGPTConfig(dataset=list(datasets), **{"nsamples": 6, "seqlen": 16, "batch_size": 2} | settings)
    return calibration_batches(model, config, tokenizer)


def rows(batches, group=None):
    pairs = zip(batches, batches.groups, strict=True)
    return [row.tolist() for batch, each in pairs if group in (None, each) for row in batch["input_ids"]]


def test_the_model_writes_half(model, cli_files, tiny_tokenizer):
    path = cli_files / "train.txt"
    found = batches_of(model, tiny_tokenizer, path, nsamples=8)
    assert (found.source, found.groups, found.ntokens) == ("train.txt, self", (0, 1, 0, 1), 8 * 16)
    assert found.tokens_by_group == [64, 64]
    assert rows(found, 0) == rows(load_batches(path, tiny_tokenizer, nsamples=4, seqlen=16))
    assert rows(found, 1) == own_text(model, tiny_tokenizer, tokens=64, length=16).tolist()


def test_own_text_has_a_limit_and_short_sequences(model, cli_files, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(calibration, "TEXT_LENGTH", 8)
    monkeypatch.setattr(calibration, "OWN_TOKENS", 32)
    found = batches_of(model, tiny_tokenizer, cli_files / "train.txt", nsamples=8)
    assert found.tokens_by_group == [96, 32]
    assert {tuple(batch["input_ids"].shape) for batch in found} == {(2, 16), (4, 8)}
    assert found.groups == (0, 0, 1, 0)


@pytest.mark.parametrize("own_tokens, groups", [(0, [96]), (16, [80, 16]), (80, [16, 80])])
def test_as_many_own_tokens_as_asked_for(model, cli_files, tiny_tokenizer, own_tokens, groups):
    found = batches_of(model, tiny_tokenizer, cli_files / "train.txt", own_tokens=own_tokens)
    assert found.tokens_by_group == groups


def test_one_sequence_is_of_the_data(model, cli_files, tiny_tokenizer):
    assert batches_of(model, tiny_tokenizer, cli_files / "train.txt", nsamples=1, seqlen=48).source == "train.txt"


def test_tokens_are_used_as_they_are(model, tiny_tokenizer):
    given = TokenBatches([{"input_ids": tokens(3, 24)}, {"input_ids": tokens(2, 8)}], "mine", (0, 1))
    found = calibration_batches(model, SliceGPTConfig(dataset=given, nsamples=1, seqlen=4))
    assert found == given
    config = SliceGPTConfig(dataset=iter([{"input_ids": tokens(3, 24)}]), own_tokens=12, seqlen=4, nsamples=1)
    found = calibration_batches(model, config)
    assert (found.source, found.tokens_by_group) == ("tokens, self", [72, 12])


def test_each_gives_its_share_in_turn(model, cli_files, tiny_tokenizer):
    path = cli_files / "train.txt"
    found = batches_of(model, tiny_tokenizer, "python-docs", str(path), "self", nsamples=7, batch_size=1)
    assert found.source == "python-docs, train.txt, self"
    docs, text = (
        rows(load_batches(source, tiny_tokenizer, nsamples=count, seqlen=16))
        for source, count in (("python-docs", 3), (path, 2))
    )
    own = own_text(model, tiny_tokenizer, tokens=32, length=16).tolist()
    assert rows(found) == [docs[0], text[0], own[0], docs[1], text[1], own[1], docs[2]]
    assert found.groups == (0, 1, 2, 0, 1, 2, 0)


def test_a_short_text_has_a_place_in_the_middle(model, tmp_path, tiny_tokenizer, caplog):
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    found = batches_of(model, tiny_tokenizer, "python-docs", tmp_path / "short.txt", own_tokens=0)
    assert [tuple(batch["input_ids"].shape) for batch in found] == [(2, 16), (1, 3), (1, 16)]
    assert "'short.txt' is too short for 3 chunks of 16 tokens: using 1 of 3" in caplog.text


def test_a_model_says_what_it_was_sliced_by(model, cli_files, tiny_tokenizer):
    config = SliceGPTConfig(sparsity=1 / 3, dataset=["self", cli_files / "train.txt"], nsamples=6, seqlen=16)
    assert SliceGPTConfig.from_dict(config.to_dict()).dataset == ["self", str(cli_files / "train.txt")]
    record = model.compress(config, tiny_tokenizer).config.slicegpt
    assert record["calibration"] == {"source": "self, train.txt", "tokens": 96, "groups": [48, 48]}


def test_one_name_in_a_list_is_that_dataset(model, tiny_tokenizer):
    alone = load_batches("python-docs", tiny_tokenizer, nsamples=6, seqlen=16)
    assert rows(batches_of(model, tiny_tokenizer, "python-docs", own_tokens=0)) == rows(alone)


@pytest.mark.parametrize(
    "datasets, settings, message",
    [
        (["self", "A document."], {}, "Unknown dataset 'A document.'"),
        (["self", {"input_ids": [1, 2]}], {}, "A mixture of datasets has names and paths; got dict among them"),
        (["self"] * 7, {}, "nsamples=6 is less than the number of datasets to mix, 7"),
        (["A document."], {"own_tokens": 96}, "own_tokens=96 leaves 0 of 6 sequences for other data; raise nsamples"),
        (["python", "python-docs"], {"own_tokens": 80}, "own_tokens=80 leaves 1 of 6 sequences for other data"),
    ],
)
def test_what_is_no_mixture(model, tiny_tokenizer, datasets, settings, message):
    with pytest.raises(ValueError, match=message):
        batches_of(model, tiny_tokenizer, *datasets, **settings)


def test_nothing_is_written_before_the_rest_is_found(model, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(calibration, "own_text", lambda *args, **kwargs: pytest.fail("text is written"))
    with pytest.raises(FileNotFoundError, match="missing.txt"):
        batches_of(model, tiny_tokenizer, "self", "missing.txt")


def test_own_text_needs_no_tokenizer(model):
    found = calibration_batches(model, SliceGPTConfig(dataset="self", nsamples=3, seqlen=16), "no/such")
    assert rows(found) == own_text(model, tokens=48, length=16).tolist()


def test_names_are_no_texts():
    with pytest.raises(ValueError, match=r"\['c4'\] among 2 texts: names of datasets, which only slicing mixes"):
        load_texts(["c4", "A document."])


# A model that is streamed


def streamed(cli_files, dataset, **settings):
    checkpoint = Checkpoint(cli_files / "dense")
    config = SliceGPTConfig(dataset=dataset, **{"nsamples": 6, "seqlen": 16, "batch_size": 2} | settings)
    return calibration_batches(checkpoint.model, config, str(cli_files / "dense"), checkpoint.tensor)


def test_a_streamed_model_takes_what_is_written(cli_files, caplog):
    dense = AutoModelForCausalLM.from_pretrained(cli_files / "dense")
    config = SliceGPTConfig(dataset=cli_files / "train.txt", nsamples=6, seqlen=16, batch_size=2)
    in_memory = calibration_batches(dense, config, str(cli_files / "dense"))
    found = streamed(cli_files, cli_files / "train.txt")
    assert rows(found) == rows(in_memory) and found.groups == in_memory.groups
    assert rows(streamed(cli_files, "self", nsamples=3)) == rows(in_memory, 1)
    assert not caplog.records


def test_a_streamed_model_takes_other_data_alone(cli_files, caplog):
    found = streamed(cli_files, cli_files / "train.txt")
    assert (found.source, found.ntokens) == ("train.txt", 96)
    assert (
        "0 of 3 sequences of its own text are cached: calibrating on other data alone. To write them: " in caplog.text
    )
    assert f"write --model {cli_files / 'dense'} --tokens 48 --seqlen 16 --seed 0" in caplog.text


@pytest.mark.parametrize("dataset", ["self", ["self", "python-docs"]])
def test_a_streamed_model_cannot_write_what_is_asked_for(cli_files, dataset):
    with pytest.raises(
        ValueError, match="A model that is streamed cannot write, and 0 of .*write them first: optimum-"
    ):
        streamed(cli_files, dataset)


def test_names_and_paths_on_the_command_line(tmp_path):
    arguments = ("compress", "--model", "dense", "--output", tmp_path, "--dataset")
    assert parse(*arguments, "self", "a.txt").dataset == ["self", Path("a.txt")]
    assert parse(*arguments, "self").dataset == "self"


@pytest.mark.parametrize("dataset", [["w1 w2"], [{"text": "w1 w2 w3"}]], ids=["texts", "rows"])
def test_a_few_words_are_refused(model, tiny_tokenizer, dataset):
    config = SliceGPTConfig(dataset=dataset, nsamples=1, seqlen=16, own_tokens=0)
    message = (
        "calibration tokens for a hidden size of 48: fewer tokens than dimensions leave axes undetermined. Give more"
    )
    with pytest.raises(ValueError, match=message):
        calibration_batches(model, config, tiny_tokenizer)


def test_a_kind_of_a_few_words_is_told_apart_from_the_others(model, tiny_tokenizer, caplog):
    config = SliceGPTConfig(dataset=["w1 w2 w3"], nsamples=5, seqlen=16, own_tokens=64)
    assert calibration_batches(model, config, tiny_tokenizer).ntokens == 67
    assert "'texts' has 3 calibration tokens for a hidden size of 48, and counts as much as any" in caplog.text
    assert "'self' has" not in caplog.text
