"""`optimum-cli slicegpt inspect`."""

from argparse import Namespace
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..configuration import SliceGPTConfig
from ..data.calibration import calibration_batches
from ..evaluation.spectrum import measure_spectrum
from ..modeling.checks import check_sliceable, is_sliced
from ..planning.inspection import Inspection, Spectrum, add_energy, inspect_dense
from ..reports.text import stream_sizes
from ..storage.files import file_written_aside, written_aside
from .loading import check_device, load_config_and_tokenizer, load_model
from .printing import print_inspection, print_json, print_record


CALIBRATION = ("dataset", "text_column", "nsamples", "seqlen", "batch_size", "seed", "device")
SIZES = ("sparsity", "parameter_reduction", "round_to", "round_neurons_to")
SPARSITIES = (0.1, 0.2, 0.25, 0.3)
"""What is inspected by default."""


def run(args: Namespace) -> None:
    """
    Prints what every method would make of a dense model, or how a sliced model was made. Can write this as a report,
    too. Loads weights only where a dataset is given, to measure the stream on it.

    FLOPs are of products with matrices; attention scores, whose number depends on the context, are left out.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt inspect`.

    Raises:
        ImportError: a report is asked for, and matplotlib is missing.
        OSError, ValueError: there is no such model, or its family cannot be sliced; the report is there already.
    """
    calibration = {key: value for key, value in vars(args).items() if key in CALIBRATION}
    if args.report or args.figures:
        from ..reports.report import dense_report, sliced_report  # This module cannot be imported without matplotlib.
    with ExitStack() as outputs:
        report = args.report and outputs.enter_context(file_written_aside(Path(args.report), args.overwrite))
        figures = args.figures and outputs.enter_context(written_aside(Path(args.figures), args.overwrite))
        model_config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
        sliced = is_sliced(model_config)
        if sliced:
            record = read_record(args, model_config, calibration)
        else:
            found, spectrum = inspect_model(args, model_config, calibration)
            record = {"model": args.model} | spectrum_record(spectrum) | asdict(found)
        if report or figures:
            page = (
                sliced_report(args.model, model_config)
                if sliced
                else dense_report(args.model, model_config, found, spectrum)
            )
        if report:
            report.write_text(page.html(), encoding="utf-8")
        if figures:
            page.save_pictures(figures)
    if args.json:
        print_json(record)
        return
    print_record(record) if sliced else print_inspection(found)
    for path in filter(None, (args.report, args.figures)):
        print(f"Saved in {path}")


def read_record(args: Namespace, model_config: PreTrainedConfig, calibration: dict[str, Any]) -> dict[str, Any]:
    """
    Reads from its configuration how a sliced model was made.

    Raises:
        ValueError: a dataset or a size is given, and there is no dense model to measure or to slice.
    """
    for key in (*calibration, *SIZES):
        if getattr(args, key):
            flag = f"--{key.replace('_', '-')}"
            raise ValueError(
                f"{flag} asks about a dense model, and {args.model} is sliced; give the model that it was made from, "
                f"or leave {flag} out to see how it was made."
            )
    hidden_size, widths = stream_sizes(model_config)
    added = ("embedding_size", "shortcuts")  # by sliced classes alone
    return {
        "model": args.model,
        "model_type": model_config.model_type,
        "original_hidden_size": hidden_size,
        **{key: getattr(model_config, key) for key in added if hasattr(model_config, key)},
        "widths": widths,
        "slicegpt": model_config.slicegpt,
    }


def inspect_model(
    args: Namespace, model_config: PreTrainedConfig, calibration: dict[str, Any]
) -> tuple[Inspection, Spectrum | None]:
    """Computes what every method would make of a dense model, and measures its stream if there is a dataset."""
    found = inspect_dense(
        model_config,
        sparsities=SPARSITIES if args.sparsity is None else args.sparsity,
        reductions=args.parameter_reduction,
        dtype=args.dtype,
        round_to=args.round_to,
        round_neurons_to=args.round_neurons_to,
    )
    if not calibration:
        return found, None
    spectrum = measure_stream(args, SliceGPTConfig(**calibration))
    return add_energy(found, spectrum), spectrum


def measure_stream(args: Namespace, config: SliceGPTConfig) -> Spectrum:
    """Measures the spectrum of a dense model on the calibration data that a configuration names."""
    check_device(config.device)
    _, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
    config.own_tokens = 0  # Only the text is measured that is named, which may be `self`.
    model = load_model(args, args.dtype)
    check_sliceable(model)
    batches = calibration_batches(model, config, tokenizer)
    return measure_spectrum(model, batches, device=config.device)


def spectrum_record(spectrum: Spectrum | None) -> dict[str, Any]:
    """Returns a measured spectrum as JSON holds it."""
    if spectrum is None:
        return {}
    energy = {rotation: rows.tolist() for rotation, rows in spectrum.energy.items()}
    return {"spectrum": {"source": spectrum.source, "tokens": spectrum.tokens, "energy": energy}}
