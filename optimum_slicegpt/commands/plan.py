"""`optimum-cli slicegpt compress --plan`."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, replace

from transformers import AutoConfig, PreTrainedConfig

from ..configuration import SliceGPTConfig
from ..data.batches import limit_to_positions
from ..data.calibration import list_sources
from ..modeling.decoder import empty_model
from ..planning.machine import Machine
from ..planning.search import RUNS
from ..planning.widths import likely_plan
from ..slicing.estimate import estimate_run
from ..streaming import DEFAULT_MEMORY
from ..validation import file_size
from .printing import print_estimate, print_json


def estimate(args: Namespace, configs: list[SliceGPTConfig]) -> None:
    """
    Prints what a run would take, and whether this machine, or the one that flags describe, has room for it. It reads
    the configuration alone, and assumes as much text as is asked for.
    """
    if args.device_memory and configs[0].device is None:
        configs = [replace(config, device="cuda") for config in configs]
    model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    set_dtype(args, model_config)
    seqlen = limit_to_positions(configs[0].seqlen, model_config)
    plans = [likely_plan(config, model_config) for config in configs]
    for plan, config in zip(plans, configs, strict=True):
        plan.check_rest(config, model_config)
    found = [
        estimate_run(
            empty_model(model_config),
            plan,
            config,
            tokens=config.nsamples * seqlen,
            tokens_per_batch=min(config.batch_size, config.nsamples) * seqlen,
            max_memory=file_size(args.max_memory or DEFAULT_MEMORY) if args.stream else None,
            groups=len(list_sources(config.dataset)) + (config.own_tokens != 0),
        )
        for plan, config in zip(plans, configs, strict=True)
    ]
    runs, machine = {} if configs[0].max_loss is None else {"runs": RUNS}, machine_of(args, configs[0])
    if args.json:
        rooms = [{place: asdict(room) for place, room in each.rooms(machine).items()} for each in found]
        sizes = [asdict(each) | {"room": room} for each, room in zip(found, rooms, strict=True)]
        print_json({"model": args.model} | runs | (sizes[0] if len(sizes) == 1 else {"sizes": sizes}))
        return
    for each in found:
        print_estimate(each, each.rooms(machine), **runs)


def set_dtype(args: Namespace, model_config: PreTrainedConfig) -> None:
    """Sets the dtype in which the model will be loaded, if it was given."""
    if args.model_dtype != "auto":
        model_config.dtype = args.model_dtype


def machine_of(args: Namespace, config: SliceGPTConfig) -> Machine:
    """Returns what flags say of a machine, whose disk they do not tell, or what this machine has."""
    if args.device_memory or args.host_memory:
        sizes = (size and file_size(size) for size in (args.host_memory, args.device_memory))
        return Machine(*sizes)
    return Machine.here(config.device, args.output)
