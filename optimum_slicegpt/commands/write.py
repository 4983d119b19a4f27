"""`optimum-cli slicegpt write`."""

from argparse import Namespace

from ..data.batches import limit_to_positions
from ..data.generated import OwnText
from ..modeling.checks import check_sliceable
from .loading import check_device, load_config_and_tokenizer, load_model
from .printing import print_json


def run(args: Namespace) -> None:
    """
    Lets a model write text into the cache, from which slicing, streaming and recovery take it.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt write`.

    Raises:
        OSError, ValueError: the model, its tokenizer or the device cannot be used.
    """
    check_device(args.device)
    model_config, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
    model = load_model(args, args.dtype)
    check_sliceable(model)
    length = limit_to_positions(args.seqlen, model_config)
    own = OwnText.of_model(model, tokenizer, seed=args.seed, length=length)
    if args.device is not None:
        model.to(args.device)
    count = -(-args.tokens // length)
    before = len(own.read())
    ids = own.write(model, count)
    texts = [tokenizer.decode(sequence) for sequence in ids[: args.print]]
    report(args, own, max(0, count - before), max(count, before), texts)


def report(args: Namespace, own: OwnText, new: int, cached: int, texts: list[str]) -> None:
    """Prints how much text was written, and where it is."""
    if args.json:
        counts = {"written": new * own.length, "cached": cached * own.length, "seqlen": own.length, "seed": own.seed}
        print_json({"model": args.model, "file": str(own.file)} | counts | {"texts": texts})
        return
    for number, text in enumerate(texts):
        print(f"--- {number}\n{text}")
    print(f"Written: {new * own.length:,} tokens, in {new} sequences of {own.length}. Kept: {cached * own.length:,}.")
    print(f"Saved in {own.file}")
