"""`optimum-cli slicegpt compress`."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import PreTrainedModel

from ..configuration import SliceGPTConfig
from ..data.calibration import list_sources
from ..data.texts import NAMES, load_texts
from ..distributed import Processes
from ..planning.rounding import unfilled_blocks
from ..planning.widths import likely_plan
from ..progress import announce
from ..quantizer import SliceGPTQuantizer
from ..reports.hub import check_access
from ..reports.model_card import model_card, save_picture
from ..storage.files import check_space, saving, written_aside
from ..storage.shards import verify_checkpoint
from ..storage.tokenizers import save_tokenizer
from ..streaming import DEFAULT_MEMORY, StreamedRun
from ..validation import file_size
from .loading import (
    check_device,
    load_config_and_tokenizer,
    load_model,
    load_test_batches,
    measure_perplexity,
    silence,
)
from .plan import estimate, machine_of, set_dtype
from .printing import print_estimate, print_json, print_sizes, print_summary


if TYPE_CHECKING:
    from ..evaluation.perplexity import Perplexity
    from ..recovery import RecoveryConfig

FLAGS = ("model", "trust_remote_code", "model_dtype", "max_shard_size", "check", "refuse_above", "recover")
FLAGS += ("eval_dataset", "eval_nsamples", "eval_seqlen", "stream", "max_memory")
"""Flags beside the settings of [`SliceGPTConfig`] that a run is repeated with."""


def run(args: Namespace) -> None:
    """
    Slices a model, saves it with its tokenizer, and prints its size before and after.

    Under `accelerate launch` every process loads the model and computes with its share of the calibration batches. The
    first process measures, writes and prints.

    Args:
        args (`Namespace`):
            Of `optimum-cli slicegpt compress`. It holds only those fields of `SliceGPTConfig` that were given.

    Raises:
        OSError, ValueError: the model, a setting, the data or the output cannot be used, all of which is checked
            before weights are read; activations are not finite.
    """
    given = vars(args)
    settings = {field.name: given[field.name] for field in fields(SliceGPTConfig) if field.name in given}
    sizes = settings.pop("parameter_reduction", None)
    sizes = sizes if isinstance(sizes, list) else [sizes]
    configs = [SliceGPTConfig(parameter_reduction=size, **settings) for size in sizes]
    config = configs[0]
    processes = Processes(config.device or "cpu")
    if not processes.is_first:
        silence()
    if not args.device_memory:
        check_device(config.device)
    file_size(args.max_shard_size)
    if args.plan:
        if processes.is_first:
            estimate(args, configs)
    elif args.stream:
        stream(args, config, processes)
    else:
        compress_in_memory(args, configs, processes)


def stream(args: Namespace, config: SliceGPTConfig, processes: Processes) -> None:
    """
    Slices layer by layer, from a checkpoint to a checkpoint, in one process or in several.

    Raises:
        OSError, ValueError: [`StreamedRun`] refuses the run.
    """
    announce(f"Checking {args.model}")
    _, tokenizer = load_config_and_tokenizer(args, config.tokenizer)
    run = StreamedRun(
        args.model,
        args.output,
        config,
        tokenizer,
        dtype=args.model_dtype,
        max_memory=args.max_memory or DEFAULT_MEMORY,
        max_shard_size=args.max_shard_size,
        resume=args.resume,
        overwrite=args.overwrite,
        trust_remote_code=args.trust_remote_code,
    )
    found = run.estimate()
    if processes.is_first and not args.json:
        print_estimate(found, found.rooms(machine_of(args, config)))
    model = run.run(partial(write_flags, args, config))
    if not processes.is_first:
        return
    dense = sum(parameter.nbytes for parameter in run.checkpoint.model.parameters())
    summary = summarise(args, model, dense, Path(args.output)) | {"plan": asdict(found)}
    print_json(summary) if args.json else print_summary(summary)


def compress_in_memory(args: Namespace, configs: list[SliceGPTConfig], processes: Processes) -> None:
    """Slices a model in memory, in one process or in several. Each of several sizes gets a folder in the output."""
    config, sizes = configs[0], [each.parameter_reduction for each in configs]
    several = len(sizes) > 1
    with written_aside(Path(args.output), args.overwrite) if processes.is_first else nullcontext() as folder:
        model_config, tokenizer = load_config_and_tokenizer(args, config.tokenizer)
        set_dtype(args, model_config)
        plans = [likely_plan(each, model_config) for each in configs]
        for plan, each in zip(plans, configs, strict=True):
            plan.check_rest(each, model_config)
        if args.push_to_hub and processes.is_first:
            check_access(args.push_to_hub)
        test = None
        if args.eval_dataset is not None and processes.is_first:
            sizes_of_test = {"nsamples": args.eval_nsamples, "seqlen": args.eval_seqlen}
            column = None if args.eval_dataset in NAMES else config.text_column  # Named datasets have their own.
            test = load_test_batches(args.eval_dataset, tokenizer, model_config, text_column=column, **sizes_of_test)

        read_files(config)
        model = load_model(args, args.model_dtype)
        if processes.is_first:
            check_space(folder, sum(plan.num_parameters(model) for plan in plans) * model.dtype.itemsize)
        size_before = sum(parameter.nbytes for parameter in model.parameters())
        before = test and measure_perplexity(model, test, config.device)
        if several:
            found = SliceGPTQuantizer(config).quantize_to_sizes(model, sizes, tokenizer, check=args.check)
        else:
            recovery = recovery_config() if args.recover else None
            model.compress(config, tokenizer, recover=recovery, check=args.check, refuse_above=args.refuse_above)
            found = [model]
        if not processes.is_first:
            return
        names = [f"{100 * size:g}" for size in sizes] if several else [""]
        summaries = []
        for name, sliced in zip(names, found, strict=True):
            after = test and measure_perplexity(sliced, test, config.device)
            if test:
                record_perplexity(sliced, test.source, before, after)
            output = Path(args.output, name)
            save(sliced, tokenizer, folder / name, output, args.max_shard_size)
            summaries.append(summarise(args, sliced, size_before, folder / name))
            summaries[-1]["output"] = str(output)
            if test:
                summaries[-1] |= {
                    "perplexity_on": test.source,
                    "perplexity_before": asdict(before),
                    "perplexity_after": asdict(after),
                }
        write_flags(args, config, folder)

    if args.push_to_hub:
        push(args, model, tokenizer)
    if several:
        about = {"model": args.model, "output": args.output}
        print_json(about | {"sizes": summaries}) if args.json else print_sizes(summaries)
    else:
        print_json(summaries[0]) if args.json else print_summary(summaries[0])


def read_files(config: SliceGPTConfig) -> None:
    """Reads calibration data that is in files, so that an error in one comes up before weights are read."""
    for source in list_sources(config.dataset):
        paths = source if isinstance(source, list) else [source]
        if all(isinstance(path, str | os.PathLike) and os.path.isfile(path) for path in paths):
            load_texts(source, text_column=config.text_column)


def record_perplexity(sliced: PreTrainedModel, source: str, before: Perplexity, after: Perplexity) -> None:
    """Adds the perplexities of the dense and the sliced model to the record of the latter."""
    found = {"before": before.perplexity, "after": after.perplexity}
    finite = {when: value for when, value in found.items() if math.isfinite(value)}  # JSON has no infinity.
    sliced.config.slicegpt["perplexity"] = {"dataset": source, **finite}


def save(sliced: PreTrainedModel, tokenizer: Any, folder: Path, output: Path, max_shard_size: str) -> None:
    """Writes a model, its card and its tokenizer to a folder, which becomes `output`, and verifies the files."""
    announce("Saving")
    with saving(output):
        sliced.save_pretrained(folder, max_shard_size=max_shard_size)
        model_card(sliced, picture=save_picture(sliced.config, folder)).save(folder / "README.md")
        save_tokenizer(tokenizer, folder)
    verify_checkpoint(folder, sliced)


def write_flags(args: Namespace, config: SliceGPTConfig, folder: Path) -> None:
    """Writes what a run was asked for, defaults included, to a folder, for `--config` to repeat it."""
    values = {key: getattr(args, key) for key in FLAGS} | config.to_dict()
    del values["quant_method"]
    values["parameter_reduction"] = getattr(args, "parameter_reduction", config.parameter_reduction)  # or several
    values["seed"] = "none" if config.seed is None else config.seed
    if isinstance(args.eval_dataset, list):
        values["eval_dataset"] = list(map(os.fspath, args.eval_dataset))
    text = yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False)
    (folder / "compress.yaml").write_text(text, encoding="utf-8")


def push(args: Namespace, model: PreTrainedModel, tokenizer: Any) -> None:
    """
    Publishes the model.

    Raises:
        OSError: the Hub refused, or the connection broke.
    """
    try:
        model.push_to_hub(args.push_to_hub, tokenizer=tokenizer)
    except OSError as error:
        upload = f"hf upload {args.push_to_hub} {args.output}"
        raise OSError(f"{error} The model is complete in {args.output!r}; publish it from there: {upload}") from error


def recovery_config() -> RecoveryConfig:
    """Returns the settings of `--recover`, the defaults."""
    from ..recovery import RecoveryConfig  # loads transformers' Trainer

    return RecoveryConfig()


def summarise(args: Namespace, model: PreTrainedModel, size_before: int, folder: Path) -> dict[str, Any]:
    """Returns the facts that every run prints, of a model that is in a folder."""
    record = model.config.slicegpt
    sizes = {"hidden size": (record["hidden_size"], model.config.hidden_size)}
    if record["neurons"] is not None:
        sizes["neurons"] = (record["all_neurons"], record["neurons"])
    return {
        "model": args.model,
        "output": args.output,
        "architecture": type(model).__name__,
        "widths": record["widths"],
        "slicegpt": record,
        "unfilled_blocks": unfilled_blocks(sizes),
        "bytes_in_memory_before": size_before,
        "bytes_on_disk_after": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }
