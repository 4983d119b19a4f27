"""Text that a model has written, and that later runs find in the cache."""

import copy
import shutil

import pytest
import torch
from filelock import FileLock
from pretend_gpu import pretend_gpu
from safetensors.torch import load_file
from tiny import build

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.data import generated
from optimum_slicegpt.data.generated import OwnText, own_text, weights_fingerprint
from optimum_slicegpt.data.sampling import write_blocks


@pytest.fixture
def written(monkeypatch):
    """Returns a list of the numbers of all sequences that models write, in the order in which they do."""
    numbers = []

    def write(model, start, stop, **settings):
        numbers.extend(range(start, stop))
        return write_blocks(model, start, stop, **settings)

    monkeypatch.setattr(generated, "write_blocks", write)
    return numbers


def test_text_is_written_once_and_extended(home, written):
    model = build("llama", torch.float32)
    first = own_text(model, tokens=40, length=8)
    assert first.shape == (5, 8) and first.dtype == torch.int64
    (file,) = home.glob("slicegpt/*.safetensors")
    assert torch.equal(load_file(file)["input_ids"].long(), first)
    assert torch.equal(own_text(model, tokens=64, length=8)[:5], first)
    assert torch.equal(own_text(model, tokens=23, length=8), first[:3])
    assert written == list(range(8))
    assert own_text(model, tokens=1, length=8).shape == (1, 8)


def test_sequences_of_several_texts_share_them(home, written, monkeypatch):
    monkeypatch.setattr(generated, "TEXT_LENGTH", 4)
    model = build("llama", torch.float32)
    texts = own_text(model, tokens=20, length=4)
    assert torch.equal(own_text(model, tokens=16, length=8), texts[:4].view(2, 8))
    assert written == list(range(5))
    longer = own_text(model, tokens=24, length=12)
    assert torch.equal(longer.view(6, 4)[:5], texts) and written == list(range(6))
    assert len(OwnText.of_model(model, seed=0, length=8).read()) == 3
    assert len(OwnText.of_model(model, seed=0, length=16).read()) == 1
    assert len(list(home.glob("slicegpt/*.safetensors"))) == 1
    own_text(model, tokens=24, length=6)  # no multiple
    assert len(list(home.glob("slicegpt/*.safetensors"))) == 2


def test_text_is_written_where_it_is_asked_for(home, hardware):
    hardware(torch.bfloat16)
    model = build("llama", torch.float32)
    text = own_text(copy.deepcopy(model), tokens=16, length=8)
    shutil.rmtree(home / "slicegpt")
    with pretend_gpu() as gpu:
        assert torch.equal(own_text(model, tokens=16, length=8, device="cuda"), text)
    assert gpu.peak >= sum(2 * each.numel() for each in model.parameters())  # in bfloat16


def test_other_text_is_in_another_file(home, tiny_tokenizer, monkeypatch):
    model = build("llama", torch.float32)
    own_text(model, tokens=16, length=8)
    own_text(model, tokens=16, length=8, seed=None)
    assert len(list(home.glob("slicegpt/*.safetensors"))) == 1
    own_text(model, tokens=16, length=4)
    own_text(model, tokens=16, length=8, seed=1)
    monkeypatch.setattr(
        tiny_tokenizer, "chat_template", "{% for each in messages %}w1 {{ each['content'] }} w2 {% endfor %}"
    )
    opened = own_text(model, tiny_tokenizer, tokens=16, length=8)
    model.get_output_embeddings().weight.data *= 2
    own_text(model, tokens=16, length=8)
    assert opened[1, 0] == 1
    assert len(list(home.glob("slicegpt/*.safetensors"))) == 5


def test_an_interruption_keeps_what_is_written(home, written, monkeypatch):
    model = build("llama", torch.float32)
    save = OwnText._save

    def interrupted(self, ids):
        save(self, ids)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OwnText, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own_text(model, tokens=70 * 4, length=4)
    assert own_text(model, tokens=70 * 4, length=4).shape == (70, 4)
    assert written == [*range(70), *range(64, 70)]
    assert {path.suffix for path in home.glob("slicegpt/*")} <= {".safetensors", ".lock"}


def test_a_cache_that_cannot_be_written_to(written, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    model = build("llama", torch.float32)
    text = own_text(model, tokens=16, length=8)
    monkeypatch.setattr(FileLock, "acquire", refused)
    assert torch.equal(own_text(model, tokens=16, length=8), text)
    with pytest.raises(
        OSError, match=r"Cannot keep the text .* in .*slicegpt': .*Permission denied; set HF_HOME to a"
    ):
        own_text(model, tokens=24, length=8)
    assert written == [0, 1]


def test_a_process_waits_for_another_that_writes(written, monkeypatch):
    model = build("llama", torch.float32)
    text = own_text(model, tokens=16, length=8)
    own = OwnText.of_model(model, seed=0, length=8)
    own.file.unlink()
    acquire = FileLock.acquire

    def late(self, *args, **kwargs):
        own._save(text)  # the other one, until it frees the lock
        return acquire(self, *args, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", late)
    assert torch.equal(own.write(model, 2), text)
    assert written == [0, 1]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_model_is_the_same_in_every_dtype(stored):
    model = build("llama").to(stored)
    model.get_output_embeddings().weight.data[:, ::2] *= 1e-5  # float16 has few digits for these
    dtypes = (torch.bfloat16, torch.float32, torch.float64) + (torch.float16,) * (stored == torch.bfloat16)
    assert len({weights_fingerprint(copy.deepcopy(model).to(dtype)) for dtype in dtypes}) == 1
    other = copy.deepcopy(model)
    other.model.norm.weight.data[0] += 0.5
    assert weights_fingerprint(other) != weights_fingerprint(model)


def test_slicing_needs_no_text_and_no_tokenizer():
    config = SliceGPTConfig(sparsity=1 / 3, dataset="self", nsamples=6, seqlen=24)
    model = build("llama", torch.float32).compress(config)
    assert model.config.slicegpt["calibration"] == {"source": "self", "tokens": 6 * 24, "groups": [6 * 24]}
