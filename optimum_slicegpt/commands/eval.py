"""`optimum-cli slicegpt eval`."""

from argparse import Namespace
from dataclasses import asdict

from ..console import print_json, print_table
from .loading import check_device, load_config_and_tokenizer, load_model, load_test_batches, measure


def run(args: Namespace) -> None:
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
