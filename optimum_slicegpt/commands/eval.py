"""`optimum-cli slicegpt eval`."""

import sys
from argparse import Namespace
from dataclasses import asdict

from ..calibration import load_batches, within_positions
from ..console import print_json, print_table
from ..evaluation import check_sizes, evaluate_losses
from .loading import check_device, compared_configs, load_config_and_tokenizer, load_model


def run(args: Namespace) -> None:
    """
    Measures the perplexity of a model, or of two, on every dataset, and prints it.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt eval`.

    Raises:
        OSError, ValueError: the device, the data or the models cannot be used; whatever can be refused is, before
            weights are read.
    """
    check_device(args.device)
    model_config, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
    configs = compared_configs(args, model_config)
    seqlen = min(within_positions(args.seqlen, config) for config in configs)
    windows = {"batch_size": args.batch_size}
    chunks = {"nsamples": args.nsamples, "seqlen": seqlen}
    if args.stride is not None:  # the chunks' text, in one piece
        windows |= {"seqlen": seqlen, "stride": args.stride}
        chunks = {"nsamples": 1, "seqlen": args.nsamples * seqlen}
    check_sizes(**windows)
    texts = [
        load_batches(dataset, tokenizer, split=args.split, text_column=args.text_column, seed=args.seed, **chunks)
        for dataset in args.dataset or ["auto"]
    ]

    names = [name for name in (args.baseline, args.model) if name is not None]
    by_model = []
    for name in names:
        model = load_model(args, args.dtype, name)
        progress = sys.stderr.isatty()
        by_model.append(
            [evaluate_losses(model, text, device=args.device, progress=progress, **windows) for text in texts]
        )
        del model  # one is in memory at a time

    results = []
    for text, losses in zip(texts, zip(*by_model, strict=True), strict=True):
        result = {"dataset": text.source} | asdict(losses[-1].perplexity())
        if args.baseline is not None:
            baseline, own = losses
            result |= {"baseline": asdict(baseline.perplexity()), "difference": asdict(own.difference(baseline))}
        results.append(result)
    if args.json:
        about = {"model": args.model, "baseline": args.baseline, "split": args.split}
        print_json(about | {"seqlen": seqlen, "stride": args.stride, "results": results})
    else:
        print_results(args, results)


def print_results(args: Namespace, results: list[dict]) -> None:
    """A row for every dataset and model."""
    rows = [("dataset", "model", "tokens", "perplexity", "nll", "difference")]
    for result in results:
        if args.baseline is not None:
            rows.append(row(result["dataset"], args.baseline, result["baseline"]))
        rows.append(row(result["dataset"], args.model, result))
    if args.baseline is None:
        print_table([row[:-1] for row in rows])
        return
    print_table(rows)
    print("Difference: of nll, which is the logarithm of the ratio of perplexities. Its standard error is paired.")


def row(dataset: str, model: str, found: dict) -> tuple[str, ...]:
    figures = f"{found['ntokens']:,}", f"{found['perplexity']:.2f}", f"{found['nll']:.4f} ± {found['stderr']:.4f}"
    difference = found.get("difference")
    return dataset, model, *figures, f"{difference['nll']:+.4f} ± {difference['stderr']:.4f}" if difference else "-"
