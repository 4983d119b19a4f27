"""`optimum-cli slicegpt inspect`."""

from argparse import Namespace
from dataclasses import asdict

from transformers import AutoConfig

from ..console import print_inspection, print_json, print_record
from ..inspection import inspect_dense


def run(args: Namespace) -> None:
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
