"""`optimum-cli slicegpt compress`."""

from __future__ import annotations

import math
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedModel

from ..configuration import SliceGPTConfig
from ..data.batches import limit_to_positions
from ..data.calibration import list_sources
from ..distributed import Processes
from ..modeling.decoder import empty_model
from ..planning.machine import Machine
from ..planning.rounding import unfilled_blocks
from ..planning.widths import SlicePlan
from ..progress import announce
from ..reports.hub import check_access
from ..reports.model_card import model_card, save_picture
from ..slicing.estimate import estimate_run
from ..storage.files import check_space, saving, written_aside
from ..storage.shards import verify_checkpoint
from ..storage.tokenizers import save_tokenizer
from ..streaming import DEFAULT_MEMORY, StreamedRun, file_size
from .loading import (
    check_device,
    load_config_and_tokenizer,
    load_model,
    load_test_batches,
    measure_perplexity,
    silence,
)
from .printing import print_estimate, print_json, print_summary


if TYPE_CHECKING:
    from ..recovery import RecoveryConfig


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
    config = SliceGPTConfig(
        **{field.name: given[field.name] for field in fields(SliceGPTConfig) if field.name in given}
    )
    processes = Processes(config.device or "cpu")
    if not processes.is_first:
        silence()
    if not args.device_memory:
        check_device(config.device)
    args.max_shard_size = file_size(args.max_shard_size)
    for flag, names in {"stream": ("max_memory", "resume"), "plan": ("device_memory", "host_memory")}.items():
        for name in names:
            if given[name] and not given[flag]:
                raise ValueError(f"--{name.replace('_', '-')} is for --{flag}; give both, or neither.")
    if args.plan:
        if processes.is_first:
            estimate(args, config)
    elif args.stream:
        stream(args, config, processes)
    else:
        compress_in_memory(args, config, processes)


def estimate(args: Namespace, config: SliceGPTConfig) -> None:
    """
    Prints what a run would take, and whether this machine, or the one that flags describe, has room for it. It reads
    the configuration alone, and assumes as much text as is asked for.
    """
    if args.device_memory and config.device is None:
        config.device = "cuda"
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    if args.model_dtype != "auto":
        model_config.dtype = args.model_dtype
    seqlen = limit_to_positions(config.seqlen, model_config)
    found = estimate_run(
        empty_model(model_config),
        SlicePlan.from_config(config, model_config),
        config,
        tokens=config.nsamples * seqlen,
        tokens_per_batch=min(config.batch_size, config.nsamples) * seqlen,
        max_memory=file_size(args.max_memory or DEFAULT_MEMORY) if args.stream else None,
        groups=len(list_sources(config.dataset)) + (config.own_tokens != 0),
    )
    rooms = found.rooms(machine_of(args, config))
    if args.json:
        rooms = {place: asdict(room) for place, room in rooms.items()}
        print_json({"model": args.model} | asdict(found) | {"room": rooms})
    else:
        print_estimate(found, rooms)


def machine_of(args: Namespace, config: SliceGPTConfig) -> Machine:
    """Returns what flags say of a machine, whose disk they do not tell, or what this machine has."""
    if args.device_memory or args.host_memory:
        sizes = (size and file_size(size) for size in (args.host_memory, args.device_memory))
        return Machine(*sizes)
    return Machine.here(config.device, args.output)


def stream(args: Namespace, config: SliceGPTConfig, processes: Processes) -> None:
    """
    Slices layer by layer, from a checkpoint to a checkpoint, in one process or in several.

    Raises:
        OSError, ValueError: [`StreamedRun`] refuses the run; an option needs the whole model in memory.
    """
    remedies = {
        "refuse_above": "optimum-cli slicegpt eval --baseline",
        "eval_dataset": "optimum-cli slicegpt eval",
        "push_to_hub": "hf upload",
    }
    for name, remedy in (remedies | {"recover": "optimum-cli slicegpt recover"}).items():
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} needs the whole model in memory; use {remedy} afterwards.")
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
    model = run.run()
    if not processes.is_first:
        return
    dense = sum(parameter.nbytes for parameter in run.checkpoint.model.parameters())
    summary = summarise(args, model, dense) | {"plan": asdict(found)}
    print_json(summary) if args.json else print_summary(summary)


def compress_in_memory(args: Namespace, config: SliceGPTConfig, processes: Processes) -> None:
    """Slices a model in memory, in one process or in several."""
    with written_aside(Path(args.output), args.overwrite) if processes.is_first else nullcontext() as folder:
        model_config, tokenizer = load_config_and_tokenizer(args, config.tokenizer)
        plan = SlicePlan.from_config(config, model_config)
        plan.check_rest(config, model_config)
        if args.push_to_hub and processes.is_first:
            check_access(args.push_to_hub)
        test = None
        if args.eval_dataset is not None and processes.is_first:
            test = load_test_batches(
                args.eval_dataset, tokenizer, model_config, nsamples=args.eval_nsamples, seqlen=args.eval_seqlen
            )

        model = load_model(args, args.model_dtype)
        if processes.is_first:
            check_space(folder, plan.num_parameters(model) * model.dtype.itemsize)
        size_before = sum(parameter.nbytes for parameter in model.parameters())
        before = test and measure_perplexity(model, test, config.device)
        recovery = recovery_config() if args.recover else None
        model.compress(config, tokenizer, recover=recovery, check=args.check, refuse_above=args.refuse_above)
        if not processes.is_first:
            return
        after = test and measure_perplexity(model, test, config.device)
        if test:
            found = {"before": before.perplexity, "after": after.perplexity}
            finite = {when: value for when, value in found.items() if math.isfinite(value)}  # JSON has no infinity.
            model.config.slicegpt["perplexity"] = {"dataset": test.source, **finite}
        announce("Saving")
        with saving(folder):
            model.save_pretrained(folder, max_shard_size=args.max_shard_size)
            model_card(model, picture=save_picture(model.config, folder)).save(folder / "README.md")
            save_tokenizer(tokenizer, folder)
        verify_checkpoint(folder, model)

    if args.push_to_hub:
        push(args, model, tokenizer)

    summary = summarise(args, model, size_before)
    if test:
        summary |= {
            "perplexity_on": test.source,
            "perplexity_before": asdict(before),
            "perplexity_after": asdict(after),
        }
    print_json(summary) if args.json else print_summary(summary)


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


def summarise(args: Namespace, model: PreTrainedModel, size_before: int) -> dict[str, Any]:
    """Returns the facts that every run prints."""
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
        "bytes_on_disk_after": sum(file.stat().st_size for file in Path(args.output).glob("*.safetensors")),
    }
