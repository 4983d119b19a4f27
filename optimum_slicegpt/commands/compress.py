"""`optimum-cli slicegpt compress`."""

import math
from argparse import Namespace
from dataclasses import asdict, fields
from pathlib import Path

from ..configuration import SliceGPTConfig
from ..console import print_json, print_report
from ..export import export_obstacle
from ..model_card import model_card, save_picture
from ..quantizer import SliceGPTQuantizer
from ..widths import SlicePlan
from ..writing import written_aside
from .loading import check_device, load_config_and_tokenizer, load_model, load_test_batches, measure


def run(args: Namespace) -> None:
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
        model_card(model, picture=save_picture(model.config, folder)).save(folder / "README.md")
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
