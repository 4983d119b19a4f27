# ruff: noqa: E402
import os
import tempfile


HOME = tempfile.TemporaryDirectory(prefix="home-")  # for what is made for several tests
os.environ["HF_HOME"] = HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported: no test needs the network
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many as there are cores
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import tiny
import torch
from huggingface_hub import constants
from quickness import measure_speed_briefly, quick_garbage_collection
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from optimum_slicegpt.modeling.contexts import HALF_PRODUCTS


for library in ("transformers", "optimum_slicegpt"):
    logging.get_logger(library).propagate = True  # to caplog


measure_speed_briefly()


def pytest_collection_modifyitems(items):
    """Lets tests that take long begin first, so that no process waits for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="module", autouse=True)
def quick_garbage():
    with quick_garbage_collection():
        yield


@pytest.fixture(autouse=True)
def warned_of_nothing():
    """Lets every test see the warnings that are logged once in a process."""
    logging.warning_once.cache_clear()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Gives every test a home of its own, beside its folder, for text that models write."""
    folder = tmp_path.with_name(f"{tmp_path.name}-home")
    monkeypatch.setattr(constants, "HF_HOME", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder))  # for processes that it starts
    return folder


@pytest.fixture
def hardware(monkeypatch):
    """Returns a function that lets the processor multiply these half precisions, and no others."""

    def multiplies(*dtypes):
        for dtype, names in HALF_PRODUCTS.items():
            for name in names:
                monkeypatch.setattr(torch.cpu, name, lambda dtype=dtype: dtype in dtypes, raising=False)

    return multiplies


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Makes a token of each word: `w0` is 0, `w95` is 95, any other 96. Adds a beginning, whose absence shows."""
    words = {f"w{i}": i for i in range(96)} | {"<unk>": 96, "<s>": 97}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 97)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", model_max_length=16)


@pytest.fixture(scope="session")
def cli_files(tmp_path_factory, tiny_tokenizer):
    """Makes a dense checkpoint, `dense`, and texts to calibrate and to measure on."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.build("llama", torch.float32, vocab_size=98).save_pretrained(folder / "dense")
    tiny_tokenizer.save_pretrained(folder / "dense")
    for name, seed in {"train.txt": 1, "more.txt": 2, "test.txt": 3}.items():
        words = (f"w{token}" for token in tiny.tokens(1, 400, seed=seed)[0].tolist())
        (folder / name).write_text(" ".join(words))
    return folder
