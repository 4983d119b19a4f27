"""`optimum-cli slicegpt eval`."""

from argparse import Namespace
from dataclasses import asdict

from ..data.batches import limit_to_positions, load_batches
from ..evaluation.perplexity import check_sizes, evaluate_losses
from ..modeling.families import begin_tokens
from .loading import check_device, configs_to_compare, load_config_and_tokenizer, load_model
from .printing import print_json, print_perplexities


def run(args: Namespace) -> None:
    """
    Measures the perplexity of one or two models on every dataset, and prints it.

    Args:
        args (`Namespace`): of `optimum-cli slicegpt eval`.

    Raises:
        OSError, ValueError: the device, the data or the models cannot be used. No weights are read before all of
            these are checked.
    """
    check_device(args.device)
    model_config, tokenizer = load_config_and_tokenizer(args, args.tokenizer)
    configs = configs_to_compare(args, model_config)
    seqlen = min(limit_to_positions(args.seqlen, config) for config in configs)
    windows = {"batch_size": args.batch_size}
    chunks = {"nsamples": args.nsamples, "seqlen": seqlen, "begin": begin_tokens(model_config)}
    if args.stride is not None:  # Windows overlap, so the text of all chunks is read in one piece.
        windows |= {"seqlen": seqlen, "stride": args.stride}
        chunks |= {"nsamples": 1, "seqlen": args.nsamples * seqlen}
    check_sizes(**windows)
    texts = [
        load_batches(dataset, tokenizer, split=args.split, text_column=args.text_column, seed=args.seed, **chunks)
        for dataset in args.dataset or ["auto"]
    ]

    names = [name for name in (args.baseline, args.model) if name is not None]
    by_model = []
    for name in names:
        model = load_model(args, args.dtype, name)
        by_model.append([evaluate_losses(model, text, device=args.device, progress=True, **windows) for text in texts])
        del model  # Only one model is in memory at a time.

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
        print_perplexities(args.model, args.baseline, results)
