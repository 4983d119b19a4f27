"""
Files of models that benchmarks measure: sliced folders, and GGUF files by llama.cpp.

llama.cpp is a folder as `benchmarks/clients/build_llama_cpp.py` makes it. Its converter needs `sentencepiece`, which
this package does not bring.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from common import is_dense
from gguf import GGUFReader


def run(*command) -> str:
    """Runs a program, and returns everything that it prints, errors included."""
    found = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if found.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{found.stdout[-2000:]}")
    return found.stdout


def sliced(dense: str, folder: Path, reductions: list[float], calibration: str, nsamples: int) -> list[dict]:
    """
    Slices a model by the default settings, with sequences of 1024 tokens, unless the folder has the results already.

    Returns:
        `list[dict]`: of the dense model and of every sliced one its `name`, its `reduction` and its `path`.
    """
    models = [{"name": "dense", "reduction": 0.0, "path": Path(dense)}]
    models += [
        {"name": f"−{share:.0%}", "reduction": share, "path": folder / f"sliced-{share}"} for share in reductions
    ]
    for model in models:
        if not is_dense(model) and not model["path"].exists():
            program = (Path(sys.executable).with_name("optimum-cli"), "slicegpt", "compress")
            data = ("--dataset", calibration, "--nsamples", nsamples, "--seqlen", 1024)
            share = ("--parameter-reduction", model["reduction"])
            run(*program, "--model", dense, "--output", model["path"], *share, *data)
    return models


def gguf_file(model: dict, kind: str, folder: Path, llama_cpp: Path) -> Path:
    """Returns a model's GGUF file of a type, which it makes in a folder unless it is there, with a log beside it."""
    path = folder / f"{model['path'].name}-{kind}.gguf"
    if path.exists():
        return path
    if kind == "f16":
        source = llama_cpp / "source/vendor/llama.cpp"
        command = (sys.executable, source / "convert_hf_to_gguf.py", model["path"], "--outtype", kind, "--outfile")
    else:
        command = (llama_cpp / "build/bin/llama-quantize", gguf_file(model, "f16", folder, llama_cpp))
    partial = path.with_suffix(".partial")
    log = run(*command, partial, *(() if kind == "f16" else (kind,)))
    path.with_suffix(".log").write_text(log)
    os.replace(partial, path)
    return path


def describe(path: Path) -> dict:
    """
    Describes a GGUF file.

    Returns:
        `dict`: `bytes` of the file; `bytes_read`, those of the tensors that a token takes, which a table that is not
        the head's does not count among; `tensors` and `fell_back`, how many tensors there are, and how many of them
        llama-quantize gave a larger type than it was asked for, because their rows do not fill its blocks.
    """
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    looked_up = tensors["token_embd.weight"] if "output.weight" in tensors else 0
    found = re.search(r"(\d+) of \d+ tensor\(s\) required fallback", path.with_suffix(".log").read_text())
    return {
        "bytes": path.stat().st_size,
        "bytes_read": sum(tensors.values()) - looked_up,
        "tensors": len(tensors),
        "fell_back": int(found[1]) if found else 0,
    }


def instructions(path: str, count: int) -> list[dict]:
    """Reads the first instructions of a file like that of Self-Instruct, with their instances."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()[:count]]
