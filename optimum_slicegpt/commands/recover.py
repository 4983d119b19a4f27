"""`optimum-cli slicegpt recover`."""

import json
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..distributed import join_processes
from ..recovery import RecoveryConfig, recover
from ..recovery.trainer import uses_cpu
from ..reports.model_card import model_card
from ..storage.files import RECORD, check_output, check_space, saving, written_aside
from ..storage.tokenizers import save_tokenizer
from .loading import check_device, load_config_and_tokenizer, load_model, silence
from .printing import print_json, print_table


def run(args: Namespace) -> None:
    """
    Recovers a sliced model, saves it with its tokenizer, and prints its held-out losses before and after.

    Under `accelerate launch` every process trains, and the first process writes and prints. A run that is cut off
    leaves no output. If it had `--checkpoints`, the same command with `--resume` continues from the last complete
    checkpoint there, and ends with the weights of an undisturbed run. `--checkpoints` and `--output` are two folders:
    the first grows during the run, and you delete it; the second is complete, or absent.

    Args:
        args (`Namespace`):
            Of `optimum-cli slicegpt recover`. It holds only those fields of `RecoveryConfig` that were given.

    Raises:
        OSError, ValueError: the model, a setting, the data or a folder cannot be used, all of which is checked before
            training; a loss is not finite.
    """
    given = vars(args)
    config = RecoveryConfig(
        **{field.name: given[field.name] for field in fields(RecoveryConfig) if field.name in given}
    )
    processes = join_processes(cpu=uses_cpu(config))
    if not processes.is_main_process:
        silence()
    check_device(config.teacher_device)
    output = check_output(Path(args.output), args.overwrite)
    _, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
    model = load_model(args, args.dtype)
    check_space(output, sum(parameter.nbytes for parameter in model.parameters()))
    recovered = recover(
        model, tokenizer, config, teacher=args.teacher, checkpoints=args.checkpoints, resume=args.resume
    )
    if not processes.is_main_process:
        return
    record = model.config.slicegpt["recovery"]
    with written_aside(output, args.overwrite) as folder:
        with saving(output):
            recovered.save_pretrained(folder)
            save_tokenizer(tokenizer, folder)
            if config.keep_adapter:
                (folder / RECORD).write_text(json.dumps({"recovery": record}, indent=1) + "\n", encoding="utf-8")
            else:
                model_card(model).save(folder / "README.md")
    if args.json:
        print_json({"model": args.model, "output": args.output, "recovery": record})
        return
    print_table(
        [
            ("trained on", f"{record['sequences']:,} sequences of {record['source']}"),
            ("held out", f"{record['held_out_sequences']:,} other sequences, to measure on"),
            ("steps", f"{record['steps']:,}, the best is {record['best_step']:,}"),
            *held_out_losses(record),
            ("held-out perplexity before", f"{record['perplexity_before']:.2f}"),
            ("held-out perplexity after", f"{record['perplexity_after']:.2f}"),
            ("seconds", f"{record['seconds']:,}"),
        ]
    )
    print(f"Saved in {args.output}")


def held_out_losses(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows of the held-out losses of every kind of text, and of the scale of adapters."""
    losses, scale = record["held_out_losses"], record["adapter_scale"]
    rows = [
        (f"held-out loss on {kind}", f"{before:.4f} before, {losses['after'][kind]:.4f} after")
        for kind, before in losses["before"].items()
    ]
    return rows if scale is None else [*rows, ("scale of the adapter", f"{scale}")]
