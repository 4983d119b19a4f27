"""What the commands of `optimum-cli slicegpt` do, and what they print. Their parsers: `register_slicegpt.py`."""

import json
import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .calibration import TokenBatches, load_batches, within_positions
from .configuration import SliceGPTConfig
from .evaluation import Perplexity, evaluate_perplexity
from .model_card import model_card
from .quantizer import SliceGPTQuantizer
from .widths import SlicePlan


def compress(args: Namespace) -> None:
    """
    Slices a model, saves it with its tokenizer, and prints what became of it.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt compress`; the fields of `SliceGPTConfig` that were given.

    Raises:
        OSError, ValueError: whatever can be refused, before the weights are read; activations that are not finite.
    """
    given = vars(args)
    config = SliceGPTConfig(
        **{field.name: given[field.name] for field in fields(SliceGPTConfig) if field.name in given}
    )
    check_device(config.device)
    with written_aside(Path(args.output)) as folder:
        model_config, tokenizer = load_config_and_tokenizer(args, config.tokenizer)
        SlicePlan.from_config(config, model_config)
        test = None
        if args.eval_dataset is not None:
            test = load_test_batches(
                args.eval_dataset, tokenizer, model_config, nsamples=args.eval_nsamples, seqlen=args.eval_seqlen
            )

        model = load_model(args, args.model_dtype)
        size_before = sum(parameter.nbytes for parameter in model.parameters())
        before = test and measure(model, test, config.device)
        SliceGPTQuantizer(config).quantize_model(model, tokenizer)
        after = test and measure(model, test, config.device)
        if test:
            found = {"before": before.perplexity, "after": after.perplexity}
            finite = {when: value for when, value in found.items() if math.isfinite(value)}  # as JSON is to hold it
            model.config.slicegpt["perplexity"] = {"dataset": test.source, **finite}
        model.save_pretrained(folder)
        model_card(model).save(folder / "README.md")
        tokenizer.save_pretrained(folder)
        size_after = sum(file.stat().st_size for file in folder.glob("*.safetensors"))

    if args.push_to_hub:
        model.push_to_hub(args.push_to_hub, tokenizer=tokenizer)

    report = {
        "model": args.model,
        "output": args.output,
        "widths": model.config.widths,
        "slicegpt": model.config.slicegpt,
        "bytes_in_memory_before": size_before,
        "bytes_on_disk_after": size_after,
    }
    if test:
        report |= {
            "perplexity_on": test.source,
            "perplexity_before": asdict(before),
            "perplexity_after": asdict(after),
        }
    if args.json:
        print_json(report)
    else:
        print_report(report)


def evaluate(args: Namespace) -> None:
    """
    Measures the perplexity of a model and prints it.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt eval`.

    Raises:
        OSError, ValueError: the device, the data or the model cannot be used.
    """
    check_device(args.device)
    model_config, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
    batches = load_test_batches(
        args.dataset,
        tokenizer,
        model_config,
        nsamples=args.nsamples,
        seqlen=args.seqlen,
        split=args.split,
        text_column=args.text_column,
        seed=args.seed,
    )
    found = measure(load_model(args, args.dtype), batches, args.device)
    if args.json:
        print_json({"model": args.model, "dataset": batches.source, "split": args.split} | asdict(found))
        return
    print_table(
        [
            ("dataset", batches.source),
            ("perplexity", f"{found.perplexity:.2f}"),
            ("nll", f"{found.nll:.4f} ± {found.stderr:.4f}"),
            ("tokens", f"{found.ntokens:,}"),
        ]
    )


# Loading and measuring


def check_device(device: str | None) -> None:
    """Refuses what would fail only once the model is loaded."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} is not available here.") from error


def load_config_and_tokenizer(args: Namespace, tokenizer: str | None):
    """What tells, without reading weights, whether the rest can work."""
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    name = tokenizer or args.model
    try:
        return model_config, AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"No tokenizer could be loaded from {name!r}; give one with --tokenizer. {error}") from error


def load_model(args: Namespace, dtype: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, trust_remote_code=args.trust_remote_code)


def load_test_batches(
    dataset, tokenizer, model_config, *, nsamples, seqlen, split="test", text_column=None, seed=None
) -> TokenBatches:
    return load_batches(
        dataset,
        tokenizer,
        split=split,
        text_column=text_column,
        nsamples=nsamples,
        seqlen=within_positions(seqlen, model_config),
        seed=seed,
    )


def measure(model: PreTrainedModel, batches: TokenBatches, device: str | None) -> Perplexity:
    home = model.device
    found = evaluate_perplexity(model, batches, device=device, progress=sys.stderr.isatty())
    model.to(home)  # slicing on a device wants one layer at a time there, not the model
    return found


# Writing


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """
    A folder to write to, which becomes `output` at the end. Nothing of it is left if the end is not reached.

    Raises:
        FileExistsError: `output` is something else than an empty folder.
    """
    output = output.resolve()
    # A mount point cannot be replaced, which would show only at the end.
    if output.exists() and (not output.is_dir() or any(output.iterdir()) or output.is_mount()):
        raise FileExistsError(f"Output {str(output)!r} is there already; give a folder that is absent or empty.")
    nearest = next(parent for parent in output.parents if parent.exists())
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=nearest) as aside:
        folder = Path(aside) / output.name
        yield folder
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            output.rmdir()
        folder.rename(output)


# Printing


def print_json(report: dict[str, Any]) -> None:
    # JSON has no NaN and no infinity, which Python writes nevertheless.
    print(json.dumps(json.loads(json.dumps(report), parse_constant=lambda name: None)))


def print_report(report: dict[str, Any]) -> None:
    record = report["slicegpt"]
    counts = record["parameters_before"], record["parameters_after"]
    sizes = report["bytes_in_memory_before"], report["bytes_on_disk_after"]
    rows = [
        ("", "before", "after", "change"),
        ("parameters", *(f"{count:,}" for count in counts), change(*counts)),
        ("size", *(f"{size / 1e6:,.1f} MB" for size in sizes), change(*sizes)),
    ]
    if "perplexity_on" in report:
        figures = [report[f"perplexity_{when}"]["perplexity"] for when in ("before", "after")]
        rows.append(
            (f"perplexity on {report['perplexity_on']}", *(f"{figure:.2f}" for figure in figures), change(*figures))
        )
    print_table(rows)
    print("Size before is of the parameters in memory, size after of the weight files on disk.")
    share = counts[1] / counts[0] - 1
    verb, more = ("grew", "more") if share > 0 else ("shrank", "fewer")
    print(f"The model {verb}: {abs(share):.1%} {more} parameters.")
    print(", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in record["seconds"].items()))
    print(f"Saved in {report['output']}")


def change(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}"


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as needed: the first flush left, figures flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    for label, *figures in rows:
        aligned = (f"{figure:>{width}}" for figure, width in zip(figures, others, strict=True))
        print("  ".join([f"{label:<{first}}", *aligned]))
