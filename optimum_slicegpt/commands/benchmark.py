"""`optimum-cli slicegpt benchmark`."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..benchmark import Benchmark, Settings, benchmark
from ..console import print_json, print_table
from ..speed import Spread
from .loading import check_device, compared_configs, load_model


def run(args: Namespace) -> None:
    """
    Measures how fast a model, or two, read prompts and generate, and prints it.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt benchmark`.

    Raises:
        OSError, ValueError: whatever can be refused, before weights are read.
    """
    check_device(args.device)
    settings = Settings(
        batch_sizes=tuple(args.batch_size),
        seqlen=args.seqlen,
        new_tokens=args.new_tokens,
        warmup=args.warmup,
        repeats=args.repeats,
        compile=args.compile,
        seed=args.seed,
    )
    output = Path(args.output) if args.output else None
    if output and not output.parent.is_dir():
        raise FileNotFoundError(f"There is no folder for --output {args.output}; make it, or write elsewhere.")
    names = {"model": args.model} if args.baseline is None else {"baseline": args.baseline, "model": args.model}
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    configs = dict(zip(names, compared_configs(args, model_config), strict=True))
    for config in configs.values():
        settings.check(config)

    def load(key: str):
        if args.random_weights:
            return random_model(configs[key], args)
        return load_model(args, args.dtype, names[key])

    found = benchmark({key: load(key).to(args.device or "cpu") for key in names}, settings)
    report = names | {"random_weights": args.random_weights, "torch": torch.__version__} | asdict(found)
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
    if args.json:
        print_json(report)
    else:
        print_benchmark(names, found)


def random_model(config, args: Namespace):
    dtype = {} if args.dtype == "auto" else {"dtype": getattr(torch, args.dtype)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code, **dtype)


def print_benchmark(names: dict[str, str], found: Benchmark) -> None:
    settings = found.settings
    threads = f", {found.threads} threads" if found.device == "cpu" else ""
    print(", ".join(f"{key}: {name}" for key, name in names.items()))
    print(
        f"Prompts of {settings.seqlen:,} tokens, {settings.new_tokens:,} new ones; {found.dtype} on {found.device}"
        f"{threads}. Median (first to third quartile) of {settings.repeats} repeats."
    )
    memory = "peak" if found.speeds[0].peak_gib is not None else "weights + cache"
    rows = [("batch", "model", "prefill, ms", "tokens/s", "decode, ms/step", "tokens/s", f"{memory}, GiB")]
    for each in found.speeds:
        gib = each.weights_gib + each.cache_gib if each.peak_gib is None else each.peak_gib
        phases = [
            cell
            for phase in (each.prefill, each.decode)
            for cell in (spread(phase.latency_ms, 1), f"{phase.tokens_per_s:,.0f}")
        ]
        rows.append((str(each.batch_size), each.model, *phases, f"{gib:.3f}"))
    print_table(rows)
    if found.speedups:
        rows = [("batch", "throughput", "prefill", "by FLOPs alone", "decode", "by FLOPs alone")]
        for each in found.speedups:
            ratios = [
                cell
                for ratio in (each.prefill, each.decode)
                for cell in (f"{spread(ratio.throughput, 2)} ×", f"{ratio.flops:.2f} ×")
            ]
            rows.append((str(each.batch_size), f"{each.model} over {each.baseline}", *ratios))
        print_table(rows)


def spread(values: Spread, digits: int) -> str:
    return f"{values.median:,.{digits}f} ({values.q1:,.{digits}f} to {values.q3:,.{digits}f})"
