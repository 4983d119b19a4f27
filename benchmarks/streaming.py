"""
Slices a checkpoint that is larger than the memory that slicing takes: peak memory, time and disk of streaming.

    python benchmarks/streaming.py [--size 3b] [--method shared] [--max-memory 512MiB] [--folder FOLDER]

Protocol: a Llama of that size with random weights in bfloat16 is written to disk, tensor by tensor. A process of its
own slices it, calibrated on 8 sequences of 512 random tokens; its peak is the kernel's count of resident memory. Adds
a run to `benchmarks/results/streaming.json`, and deletes both checkpoints.
"""

import argparse
import json
import re
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import init_empty_weights
from common import RESULTS, environment, in_fresh_process, peak_gib, write
from transformers import AutoModelForCausalLM, LlamaConfig

from optimum_slicegpt import SliceGPTConfig
from optimum_slicegpt.storage.shards import Shards
from optimum_slicegpt.streaming import StreamedRun


SIZES = {
    "3b": {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "num_key_value_heads": 8},
    "300m": {"vocab_size": 49152, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "num_key_value_heads": 8},
    "30m": {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
    | {"num_attention_heads": 8, "num_key_value_heads": 4},
}
METHODS = {
    "shared": {"refit": False},
    "paper": {"rotation": "per_block", "refit": False, "sparsity": 0.25},
    "default": {},
}


def write_random_checkpoint(folder: Path, size: str) -> int:
    """Writes a Llama with random weights, and returns its number of parameters."""
    config = LlamaConfig(**SIZES[size], tie_word_embeddings=True, dtype="bfloat16", bos_token_id=0, eos_token_id=0)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    model.save_pretrained(folder, state_dict={})
    shards = Shards(folder, model, "2GB")
    shards.allocate()
    generator = torch.Generator().manual_seed(0)
    for name, empty in model.named_parameters():
        value = torch.ones(empty.shape, dtype=empty.dtype)
        if value.ndim > 1:
            value.normal_(std=0.02, generator=generator)
        shards.write(name, value)
    shards.sync()
    return model.num_parameters()


def read_memory(key: str) -> float:
    """Reads a figure of this process's memory, in GiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 2**20


def measure(args) -> dict:
    imported = read_memory("VmRSS")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(SIZES[args.size]["vocab_size"], (8, 512), generator=generator)
    batches = [{"input_ids": part} for part in ids.split(2)]
    config = SliceGPTConfig(dataset=batches, **METHODS[args.method])
    output = Path(args.folder) / "sliced"
    start = time.perf_counter()
    run = StreamedRun(Path(args.folder) / "dense", output, config, max_memory=args.max_memory)
    plan = run.estimate()
    sliced = run.run()
    return {
        "slicing_s": time.perf_counter() - start,
        "plan": asdict(plan),
        "seconds_by_phase": sliced.config.slicegpt["seconds"],
        "peak_gib": peak_gib(),
        "peak_gib_of_status": read_memory("VmHWM"),
        "gib_when_imported": imported,
        "width": min(sliced.config.slicegpt["widths"]),
        "parameters": sliced.num_parameters(),
        "bytes_sliced": sum(file.stat().st_size for file in output.glob("*.safetensors")),
        "threads": torch.get_num_threads(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="3b")
    parser.add_argument("--method", choices=METHODS, default="shared")
    parser.add_argument("--max-memory", default="512MiB", help="of activations and second moments")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="has room for the model, twice")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args)))
        return

    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        parameters = write_random_checkpoint(folder / "dense", args.size)
        size = sum(file.stat().st_size for file in (folder / "dense").glob("*.safetensors"))
        given = [f"--size={args.size}", f"--method={args.method}", f"--max-memory={args.max_memory}"]
        found = in_fresh_process(__file__, "--run", f"--folder={folder}", *given)
    finally:
        shutil.rmtree(folder)
    key = {"size": args.size, "method": args.method, "max_memory": args.max_memory}
    about = {
        "commit": environment()["commit"],
        "calibration_tokens": "8 x 512",
        "parameters_dense": parameters,
        "bytes_dense": size,
    }
    path = RESULTS / "streaming.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in runs if not key.items() <= run.items()]
    print(write("streaming", {"runs": [*runs, key | about | found]}))


if __name__ == "__main__":
    main()
