"""`optimum-cli slicegpt inspect`."""

from argparse import Namespace
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from transformers import AutoConfig

from ..configuration import SliceGPTConfig
from ..console import print_inspection, print_json, print_record
from ..inspection import inspect_dense
from ..quantizer import SliceGPTQuantizer, check_sliceable
from ..spectrum import Spectrum, measure_spectrum, with_energy
from ..writing import file_written_aside, written_aside
from .loading import check_device, load_config_and_tokenizer, load_model


CALIBRATION = ("dataset", "text_column", "nsamples", "seqlen", "batch_size", "seed", "device")


def run(args: Namespace) -> None:
    """
    Prints what every method would make of a model, or what was done to one that is sliced; perhaps writes a report.
    Loads no weights unless there is a dataset to measure the stream on.

    FLOPs are of products with matrices; attention scores, whose number depends on the context, are left out.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt inspect`.

    Raises:
        ImportError: a report is asked for, and matplotlib is missing.
        OSError, ValueError: there is no such model, or its family cannot be sliced; the report is there already.
    """
    calibration = {key: value for key, value in vars(args).items() if key in CALIBRATION}
    if calibration and "dataset" not in calibration:
        flags = ", ".join("--" + key.replace("_", "-") for key in calibration)
        raise ValueError(f"{flags} without --dataset: there is nothing to measure. Give a dataset, or leave it out.")
    if args.report or args.figures:
        from ..report import dense_report, sliced_report  # which cannot be imported without matplotlib
    with ExitStack() as outputs:
        report = args.report and outputs.enter_context(file_written_aside(Path(args.report)))
        figures = args.figures and outputs.enter_context(written_aside(Path(args.figures)))
        model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
        is_sliced = model_config.model_type.startswith("sliced_")
        if is_sliced:
            if calibration:
                raise ValueError(
                    f"--dataset measures the stream of a dense model, and {args.model} is sliced; give the model that "
                    "it was made from, or leave --dataset out to be told how it was made."
                )
            keys = ("model_type", "original_hidden_size", "embedding_size", "shortcuts", "widths", "slicegpt")
            record = {"model": args.model} | {key: getattr(model_config, key) for key in keys}
        else:
            found = inspect_dense(
                model_config,
                sparsities=args.sparsity,
                reductions=args.parameter_reduction,
                dtype=args.dtype,
                round_to=args.round_to,
            )
            spectrum = measured(args, SliceGPTConfig(**calibration)) if calibration else None
            record = {"model": args.model}
            if spectrum:
                found = with_energy(found, spectrum)
                energy = {rotation: rows.tolist() for rotation, rows in spectrum.energy.items()}
                record["spectrum"] = {"source": spectrum.source, "tokens": spectrum.tokens, "energy": energy}
            record |= asdict(found)
        if report or figures:
            page = (
                sliced_report(args.model, model_config)
                if is_sliced
                else dense_report(args.model, model_config, found, spectrum)
            )
        if report:
            report.write_text(page.html(), encoding="utf-8")
        if figures:
            page.save_pictures(figures)
    if args.json:
        print_json(record)
        return
    print_record(record) if is_sliced else print_inspection(found)
    for path in filter(None, (args.report, args.figures)):
        print(f"Saved in {path}")


def measured(args: Namespace, config: SliceGPTConfig) -> Spectrum:
    """The spectrum of a dense model on the calibration data that a configuration names."""
    check_device(config.device)
    _, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
    model = load_model(args, args.dtype)
    check_sliceable(model)
    batches = SliceGPTQuantizer(config).calibration_batches(model, tokenizer)
    return measure_spectrum(model, batches, device=config.device)
