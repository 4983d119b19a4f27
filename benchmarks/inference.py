"""
Measures the speed of sliced models beside dense ones: reading 1 and 4 prompts of 512 tokens, and continuing them.

    python benchmarks/inference.py [--dtype float32]

Models are SmolLM2-135M, and a Llama of hidden size 2048 with five layers of TinyLlama's sizes. Each is measured dense,
sliced by the default method to three quarters of its parameters, and sliced by the paper's method at sparsity 0.25.
The weights are random; speed does not depend on them. The three models take turns in one process. One more prefill of
each is then profiled, to show where the time goes. Writes `benchmarks/results/inference*.json`.
"""

import argparse
import json
from dataclasses import asdict

import torch
from common import dense_smollm2, in_fresh_process, write
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from optimum_slicegpt import SliceGPTConfig, SlicePlan
from optimum_slicegpt.evaluation.benchmark import Settings, benchmark
from optimum_slicegpt.modeling.decoder import empty_model
from optimum_slicegpt.modeling.families import num_neurons
from optimum_slicegpt.slicing.skeleton import build_sliced


MODELS = {
    "SmolLM2-135M": lambda: AutoConfig.from_pretrained(dense_smollm2()),
    "Llama, hidden size 2048": lambda: LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=5,
        num_attention_heads=32,
        num_key_value_heads=4,
    ),
}
METHODS = {
    "default": SliceGPTConfig(parameter_reduction=0.25),
    "paper": SliceGPTConfig(rotation="per_block", refit=False, sparsity=0.25),
}
OPERATIONS = 8
"""So many operations, those that take most time, are named."""


def random_models(config, dtype: torch.dtype) -> dict:
    """Builds the dense model and a model of the shapes that each method leads to."""
    configs = {"dense": config}
    for name, method in METHODS.items():
        configs[name] = build_sliced(empty_model(config), SlicePlan.from_config(method, config)).config
    return {name: AutoModelForCausalLM.from_config(each, dtype=dtype).eval() for name, each in configs.items()}


@torch.inference_mode()
def milliseconds_by_operation(model, batch_size: int, seqlen: int) -> dict[str, float]:
    """Profiles one prefill."""
    ids = torch.randint(model.config.vocab_size, (batch_size, seqlen))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
    taken = {event.key: event.self_cpu_time_total / 1e3 for event in found.key_averages()}
    names = sorted(taken, key=taken.get, reverse=True)
    return {name: taken[name] for name in names[:OPERATIONS]} | {
        "everything else": sum(taken[name] for name in names[OPERATIONS:])
    }


def measure(args) -> dict:
    models = random_models(MODELS[args.model](), getattr(torch, args.dtype))
    settings = Settings(tuple(args.batch_size), args.seqlen, args.new_tokens, args.warmup, args.repeats)
    found = asdict(benchmark(models, settings))
    for each in found["speeds"]:
        model = models[each["model"]]
        each["parameters"] = model.num_parameters()
        each["width"] = min(getattr(model.config, "widths", None) or [model.config.hidden_size])
        each["neurons"] = num_neurons(model.config)
        each["prefill_ms_by_operation"] = milliseconds_by_operation(model, each["batch_size"], args.seqlen)
    return {"name": args.model} | found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        print(json.dumps(measure(args)))
        return
    given = [f"--{key}={getattr(args, key)}" for key in ("dtype", "seqlen", "warmup", "repeats")]
    given += [f"--new-tokens={args.new_tokens}", "--batch-size", *args.batch_size]
    runs = [in_fresh_process(__file__, "--model", name, *given) for name in MODELS]
    print(write("inference" if args.dtype == "float32" else f"inference_{args.dtype}", {"runs": runs}))


if __name__ == "__main__":
    main()
