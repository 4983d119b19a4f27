"""What the commands of `optimum-cli slicegpt` do, and what they print. Their parsers: `register_slicegpt.py`."""

import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .calibration import TokenBatches, load_batches, within_positions
from .configuration import SliceGPTConfig
from .console import print_inspection, print_json, print_record, print_report, print_table
from .evaluation import Perplexity, evaluate_perplexity
from .export import check_exportable, export_obstacle, export_stock
from .inspection import inspect_dense
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
        "export_obstacle": export_obstacle(model),
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


def inspect(args: Namespace) -> None:
    """
    Prints what every method would make of a model, or what was done to one that is sliced. Loads no weights.

    FLOPs are of products with matrices; attention scores, whose number depends on the context, are left out.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt inspect`.

    Raises:
        OSError, ValueError: there is no such model, or its family cannot be sliced.
    """
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    if model_config.model_type.startswith("sliced_"):
        keys = ("model_type", "original_hidden_size", "embedding_size", "shortcuts", "widths", "slicegpt")
        record = {"model": args.model} | {key: getattr(model_config, key) for key in keys}
        print_json(record) if args.json else print_record(record)
        return
    found = inspect_dense(
        model_config,
        sparsities=args.sparsity,
        reductions=args.parameter_reduction,
        dtype=args.dtype,
        round_to=args.round_to,
    )
    print_json({"model": args.model} | asdict(found)) if args.json else print_inspection(found)


def export(args: Namespace) -> None:
    """
    Saves a sliced model as one of its family's own class, with its tokenizer, and prints what it is.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt export`.

    Raises:
        OSError, ValueError: whatever can be refused, before the weights are read.
    """
    with written_aside(Path(args.output)) as folder:
        model_config, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
        with torch.device("meta"):
            check_exportable(AutoModelForCausalLM.from_config(model_config, trust_remote_code=args.trust_remote_code))
        model = export_stock(load_model(args, "auto"))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    name, width, count = type(model).__name__, model.config.hidden_size, model.num_parameters()
    if args.json:
        report = {"model": args.model, "output": args.output, "architecture": name, "hidden_size": width}
        print_json(report | {"parameters": count, "bytes_on_disk": size})
    else:
        print(f"{name}: hidden size {width:,}, {count:,} parameters, {size / 1e6:,.1f} MB")
        print(f"Saved in {args.output}")


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
