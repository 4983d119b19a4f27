"""`optimum-cli slicegpt benchmark`."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..evaluation.benchmark import Settings, benchmark
from .loading import check_device, configs_to_compare, load_model
from .printing import print_benchmark, print_json


def run(args: Namespace) -> None:
    """
    Measures how fast one or two models read prompts and generate, and prints it.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt benchmark`.

    Raises:
        OSError, ValueError: a model, a setting, the device or the output cannot be used. No weights are read before
            all of these are checked.
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
    if output and output.is_dir():
        raise IsADirectoryError(f"--output {args.output} is a folder; give the name of a file.")
    names = {"model": args.model} if args.baseline is None else {"baseline": args.baseline, "model": args.model}
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    configs = dict(zip(names, configs_to_compare(args, model_config), strict=True))
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


def random_model(config, args: Namespace) -> PreTrainedModel:
    """Builds a model with random weights; the random state outside stays as it is."""
    dtype = {} if args.dtype == "auto" else {"dtype": getattr(torch, args.dtype)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code, **dtype)
