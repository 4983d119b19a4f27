"""
llama.cpp: converts a folder to GGUF, quantizes it, and runs it in its library.

`--llama-cpp` is the folder that `build_llama_cpp.py` makes, `--type` one of llama-quantize's, or `f16`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contract import arguments, measure, write
from transformers import AutoTokenizer


TEXT = "In 2024, it's 3.14159 °C:\n\n\tdéjà vu, 你好 -- def f(x): return x**2  # (42)"
"""What tokenizers cut in different ways."""


def convert(model: str, folder: Path, to: Path, kind: str) -> Path:
    """Converts a model to a GGUF file of a type in the folder `to`; `folder` is llama.cpp's."""
    source, gguf = folder / "source/vendor/llama.cpp", to / "model-f16.gguf"
    command = [sys.executable, source / "convert_hf_to_gguf.py", model, "--outfile", gguf, "--outtype", "f16"]
    environment = os.environ | {"PYTHONPATH": str(source / "gguf-py")}
    subprocess.run(command, check=True, env=environment)
    if kind == "f16":
        return gguf
    quantized = to / f"model-{kind}.gguf"
    subprocess.run([folder / "build/bin/llama-quantize", gguf, quantized, kind], check=True)
    return quantized


def load(gguf: Path, folder: Path):
    """Loads a GGUF file in llama.cpp's library, by the Python of its sdist and without that package's own build."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(folder / "build/bin")
    sys.path.insert(0, str(folder / "source"))
    from llama_cpp import Llama

    settings = {"n_ctx": 1024, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return Llama(str(gguf), logits_all=True, **settings)


def main():
    args = arguments(llama_cpp=None, type="f16")
    folder = Path(args.llama_cpp)
    with tempfile.TemporaryDirectory() as to:
        gguf = convert(args.model, folder, Path(to), args.type)
        size, model = gguf.stat().st_size, load(gguf, folder)
    tokens = AutoTokenizer.from_pretrained(args.model)(TEXT, add_special_tokens=False).input_ids
    assert model.tokenize(TEXT.encode(), add_bos=False) == tokens, "llama.cpp's tokenizer gives other tokens"

    def logits(ids):
        model.reset()
        model.eval(ids)
        return np.array(model.scores[: len(ids)])

    def generate(ids, tokens):
        model.reset()
        model.eval(ids)
        written = []
        while True:
            written.append(int(model.scores[model.n_tokens - 1].argmax()))
            if len(written) == tokens:
                return written
            model.eval(written[-1:])

    found = {"type": args.type, "bytes": size} | measure(args.reference, logits, generate)
    write(args.output, found | {"versions": {"llama-cpp-python": (folder / "version").read_text().strip()}})


if __name__ == "__main__":
    main()
