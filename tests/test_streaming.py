"""From a checkpoint to a checkpoint, a layer at a time: the same bytes as through memory."""

import json

import pytest
import torch
from tiny import TINY, build, calibration
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.data.batches import TokenBatches
from optimum_slicegpt.storage.tokenizers import save_tokenizer
from optimum_slicegpt.streaming import StreamedRun, compress_checkpoint


METHODS = {
    "paper": {"rotation": "per_block", "refit": False},
    "per_block": {"rotation": "per_block"},
    "shared": {"refit": False},
    "refit": {},
    "fisher": {"metric": "fisher"},
    "energy": {"schedule": "energy", "mlp_sparsity": 0.4, "round_to": 1, "round_neurons_to": 1},
}
TIED = {"tie_word_embeddings": True}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Returns a function that saves a tiny model in several files."""
    root = tmp_path_factory.mktemp("dense")

    def dense(name, **overrides):
        folder = root / "-".join([name, *map(str, overrides.values())])
        if not folder.exists():
            build(name, torch.float32, **overrides).save_pretrained(folder, max_shard_size="30KB")
        return folder

    return dense


def through_memory(folder, output, config):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.compress(config)
    model.save_pretrained(output, max_shard_size="20KB")
    return model


def assert_same_files(one, other):
    """Compares two folders, except the model card with its picture and the times in the configuration."""
    assert {path.name for path in other.iterdir()} - {path.name for path in one.iterdir()} <= {
        "README.md",
        "slicegpt.png",
    }
    for path in one.iterdir():
        if path.name == "config.json":
            contents = [json.loads((folder / path.name).read_text()) for folder in (one, other)]
            for content in contents:
                del content["slicegpt"]["seconds"]
            assert contents[0] == contents[1]
        else:
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "name, method",
    [
        (name, method)
        for name in ("llama", "gpt2", "opt", "mixtral")
        for method in METHODS
        if (name, method) != ("mixtral", "energy")  # experts have no neurons to share out
    ],
)
def test_every_method_gives_the_bytes_that_it_gives_in_memory(dense, tmp_path, name, method):
    config = SliceGPTConfig(sparsity=1 / 3, slice_head=True, dataset=calibration(), **METHODS[method])
    if name != "mixtral" and config.refit:
        config.mlp_sparsity = 0.4
    folder = dense(name)
    through_memory(folder, tmp_path / "memory", config)
    compress_checkpoint(folder, tmp_path / "streamed", config, max_shard_size="20KB", max_memory="20KB")
    assert_same_files(tmp_path / "memory", tmp_path / "streamed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "streamed"]


@pytest.mark.parametrize("settings", [{}, {"architecture": "sliced", "orientation": "random"}], ids=["auto", "sliced"])
@pytest.mark.parametrize("name", TINY)
def test_every_family_gives_the_bytes_that_it_gives_in_memory(dense, tmp_path, name, settings):
    config = SliceGPTConfig(sparsity=1 / 3, slice_head=True, dataset=calibration(), **settings)
    through_memory(dense(name), tmp_path / "memory", config)
    sliced = compress_checkpoint(dense(name), tmp_path / "streamed", config, max_shard_size="20KB")
    assert_same_files(tmp_path / "memory", tmp_path / "streamed")
    assert all(parameter.is_meta for parameter in sliced.parameters())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "streamed").num_parameters() == sliced.num_parameters()


@pytest.mark.parametrize(
    "name, overrides, settings",
    [
        ("llama", {}, {}),
        ("llama", TIED, {}),
        ("gemma", TIED, {}),  # multiplies what it looks up by the root of the hidden size
        ("qwen2", {"use_sliding_window": False}, {}),  # becomes a Llama
        ("nemotron", {}, {}),  # LayerNorms take a dimension for the mean
        ("gpt2", TIED, {"sparsity": 0.0}),  # or keep all dimensions
        ("opt", TIED, {"sparsity": 0.0}),
    ],
)
def test_a_stock_result_is_the_same_through_every_door(dense, tmp_path, name, overrides, settings):
    folder = dense(name, **overrides)
    settings = {"sparsity": 1 / 3, "mlp_sparsity": 0.4, "architecture": "stock"} | settings
    config = SliceGPTConfig(dataset=calibration(), **settings)
    model = through_memory(folder, tmp_path / "memory", config)
    streamed = compress_checkpoint(folder, tmp_path / "streamed", config, max_shard_size="20KB", max_memory="20KB")
    hook = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    hook.save_pretrained(tmp_path / "hook", max_shard_size="20KB")
    assert_same_files(tmp_path / "memory", tmp_path / "streamed")
    assert_same_files(tmp_path / "memory", tmp_path / "hook")
    assert type(model) is type(hook) is type(streamed) and type(model).__module__.startswith("transformers.")
    assert not list((tmp_path / "streamed").glob("*.py"))


@pytest.mark.parametrize("embeddings", ["tied", "sliced"])
@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_tied_embeddings(dense, tmp_path, name, embeddings):
    folder = dense(name, **TIED)
    config = SliceGPTConfig(sparsity=1 / 3, slice_head=True, dataset=calibration(), embeddings=embeddings)
    through_memory(folder, tmp_path / "memory", config)
    compress_checkpoint(folder, tmp_path / "streamed", config, max_shard_size="20KB")
    assert_same_files(tmp_path / "memory", tmp_path / "streamed")


def test_padding_dtypes_and_a_tokenizer(dense, tmp_path, tiny_tokenizer):
    batches = calibration()
    batches[0]["attention_mask"] = torch.ones_like(batches[0]["input_ids"])
    batches[0]["attention_mask"][0, :5] = 0
    config = SliceGPTConfig(sparsity=1 / 3, dataset=batches, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(dense("llama"), dtype=torch.float16)
    model.compress(config)
    model.save_pretrained(tmp_path / "memory")
    save_tokenizer(tiny_tokenizer, tmp_path / "memory")
    compress_checkpoint(dense("llama"), tmp_path / "streamed", config, tiny_tokenizer, dtype="float16")
    assert_same_files(tmp_path / "memory", tmp_path / "streamed")


@pytest.mark.parametrize("architecture", ["stock", "sliced"])
@pytest.mark.parametrize("overrides", [{}, TIED], ids=["untied", "tied"])
def test_the_plan_tells_sizes_exactly(dense, tmp_path, overrides, architecture):
    folder = dense("llama", **overrides)
    config = SliceGPTConfig(sparsity=1 / 3, dataset=calibration(), refit=False, architecture=architecture)
    run = StreamedRun(folder, tmp_path / "streamed", config, max_memory="1MiB")
    plan = run.estimate()
    assert plan.passes == ["second moments of all sites", "slicing"]
    assert plan.bytes_read == 2 * 4 * plan.parameters_before
    sliced = run.run()
    assert plan.parameters_after == sliced.num_parameters()
    weights = sum(file.stat().st_size for file in (tmp_path / "streamed").glob("*.safetensors"))
    assert weights - 4096 < plan.bytes_written < weights
    assert plan.memory["activations and moments"] <= 2**20
    assert plan.seconds > 0


@pytest.mark.parametrize(
    "method, passes",
    [("paper", 1), ("per_block", 1), ("shared", 2), ("refit", 2), ("fisher", 3)],
)
def test_the_plan_counts_passes(dense, tmp_path, method, passes):
    config = SliceGPTConfig(sparsity=1 / 3, dataset=calibration(), **METHODS[method])
    assert len(StreamedRun(dense("llama"), tmp_path / "streamed", config).estimate().passes) == passes


@pytest.mark.parametrize("size", ["much", "1 XB", "-1GB"])
def test_sizes_without_sense_are_refused(dense, tmp_path, size):
    with pytest.raises(ValueError, match="is no size; give a number with a unit"):
        StreamedRun(dense("llama"), tmp_path / "streamed", SliceGPTConfig(dataset=calibration()), max_memory=size)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_text_that_the_model_wrote_is_the_same_through_every_door(dense, tmp_path, name):
    settings = {"sparsity": 1 / 3, "seqlen": 24, "batch_size": 2, "own_tokens": 96}
    config = SliceGPTConfig(dataset=calibration(), **settings)
    with pytest.raises(ValueError, match="0 of 4 sequences of its own text are cached; write them first"):
        StreamedRun(dense(name), tmp_path / "streamed", SliceGPTConfig(**settings | {"dataset": "self"}))
    model = through_memory(dense(name), tmp_path / "memory", config)
    compress_checkpoint(dense(name), tmp_path / "streamed", config, max_shard_size="20KB")
    hook = AutoModelForCausalLM.from_pretrained(dense(name), quantization_config=config)
    hook.save_pretrained(tmp_path / "hook", max_shard_size="20KB")
    assert_same_files(tmp_path / "memory", tmp_path / "streamed")
    assert_same_files(tmp_path / "memory", tmp_path / "hook")
    assert model.config.slicegpt["calibration"] == {"source": "tokens, self", "tokens": 240, "groups": [144, 96]}


def test_a_run_resumes_with_the_same_groups_only(dense, tmp_path):
    one = SliceGPTConfig(sparsity=1 / 3, dataset=TokenBatches(calibration(), "some", (0, 0, 1)))
    other = SliceGPTConfig(sparsity=1 / 3, dataset=calibration())
    first, second = (StreamedRun(dense("llama"), tmp_path / "streamed", config) for config in (one, other))
    assert first.fingerprint()["calibration data"] != second.fingerprint()["calibration data"]


def test_an_output_that_is_there_is_refused(dense, tmp_path):
    (tmp_path / "streamed").mkdir()
    (tmp_path / "streamed" / "kept.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        StreamedRun(dense("llama"), tmp_path / "streamed", SliceGPTConfig(dataset=calibration()))
