"""
Estimates what slicing large models takes, streamed from disk to disk. Nothing is measured, and no weight is read.

    python benchmarks/costs.py

Hours count operations at rates that an H100 is assumed to reach. Writes `benchmarks/results/costs.json`.
"""

from dataclasses import asdict

import torch
from common import write
from transformers import LlamaConfig

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.modeling.decoder import empty_model
from optimum_slicegpt.slicing.estimate import RunEstimate, estimate_run


METHODS = {
    "paper": {"rotation": "per_block", "refit": False, "sparsity": 0.25},
    "shared": {"refit": False, "parameter_reduction": 0.25},
    "default": {"parameter_reduction": 0.25},
}
LARGE = {
    "Llama-2-7B": (4096, 11008, 32, 32, 32, 32000),
    "Llama-3-70B": (8192, 28672, 80, 64, 8, 128256),
    "Llama-3.1-405B": (16384, 53248, 126, 128, 8, 128256),
}
"""Hidden size, neurons, layers, heads, key-value heads, vocabulary."""
CALIBRATION, MAX_MEMORY = (128, 2048), 16 * 2**30
"""Number and length of sequences; bytes of activations and moments in memory while a model is streamed."""
H100 = {"bfloat16": 495e12, "float32": 33e12, "float64": 33e12}
"""Half of the operations per second in its data sheet (SXM; float64 on its tensor cores)."""


def llama(hidden_size, neurons, layers, heads, kv_heads, vocab_size) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def estimate(config: LlamaConfig, method: str, tokens: int, tokens_per_batch: int, **options) -> RunEstimate:
    settings, model = SliceGPTConfig(**METHODS[method]), empty_model(config).to(torch.bfloat16)
    plan = SlicePlan.from_config(settings, config)
    return estimate_run(model, plan, settings, tokens, tokens_per_batch, **options)


def main():
    (sequences, seqlen), runs = CALIBRATION, []
    for name, sizes in LARGE.items():
        for method in METHODS:
            tokens, options = sequences * seqlen, {"max_memory": MAX_MEMORY, "groups": 2, "timed": False}
            found = estimate(llama(*sizes), method, tokens, seqlen, **options)
            seconds = sum(count / H100[dtype] for dtype, count in found.flops.items())
            runs.append({"model": name, "method": method} | asdict(found) | {"seconds": seconds})
    about = {"H100_flops_per_s": H100, "calibration": f"{sequences} x {seqlen} tokens", "max_memory": MAX_MEMORY}
    print(write("costs", about | {"runs": runs}))


if __name__ == "__main__":
    main()
