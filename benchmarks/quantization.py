"""
Measures size and perplexity of a sliced SmolLM2-135M with int8 weights by torchao (`pip install torchao`).

    python benchmarks/quantization.py

Calibrates on Python's documentation, measures on topics held out from it. Writes
`benchmarks/results/quantization.json`.
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from common import dense_smollm2, write
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from optimum_slicegpt import SliceGPTConfig, evaluate_perplexity, load_batches


SPARSITY = 0.25
KEPT = [".*_shortcut", ".*projection", "lm_head"]


def measure(folder: str, batches, **kwargs) -> dict:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **kwargs)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        size = sum(path.stat().st_size for path in Path(saved).glob("*.safetensors"))
    return {"saved_mb": size / 1e6, "perplexity": evaluate_perplexity(model, batches).perplexity}


def main():
    dense = dense_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(dense)
    test = load_batches("python-docs", tokenizer, split="test", nsamples=8, seqlen=512, seed=None)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
    config = SliceGPTConfig(
        rotation="per_block",
        refit=False,
        sparsity=SPARSITY,
        dataset="python-docs",
        own_tokens=0,
        nsamples=64,
        seqlen=512,
    )
    model.compress(config, tokenizer=tokenizer)

    def int8(**kwargs):
        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig(), **kwargs)}

    with tempfile.TemporaryDirectory() as sliced:
        model.save_pretrained(sliced)
        runs = {
            "dense": measure(dense, test),
            "dense, int8 weights": measure(dense, test, **int8()),
            "sliced": measure(sliced, test),
            "sliced, int8 weights, shortcuts too": measure(sliced, test, **int8()),
            "sliced, int8 weights except the shortcuts": measure(sliced, test, **int8(modules_to_not_convert=KEPT)),
        }
    content = {
        "model": "SmolLM2-135M-Instruct",
        "sparsity": SPARSITY,
        "calibration": "64 x 512 tokens of python-docs",
        "test": "8 x 512 tokens of python-docs, held-out topics",
        "torchao": version("torchao"),
        "runs": runs,
    }
    print(write("quantization", content))


if __name__ == "__main__":
    main()
