"""Flags of `optimum-cli slicegpt eval`."""

from argparse import ArgumentParser

from optimum.commands.base import CommandInfo

from .arguments import (
    Datasets,
    SliceGPTSubcommand,
    add_baseline_argument,
    add_dtype_argument,
    add_model_arguments,
    add_text_arguments,
    seed,
)
from .parsing import count


class EvalCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="eval", help="Measure the perplexity of a model, alone or beside another.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = (
            EvalCommand.COMMAND.help + " Standard errors are over sequences, and the error of a difference is paired. "
            "--dataset may be given several times, for one row each."
        )
        add_model_arguments(parser)
        add_baseline_argument(parser)
        add_text_arguments(parser, action=Datasets)
        parser.set_defaults(nsamples=128, seqlen=2048)
        parser.add_argument(
            "--stride",
            type=count,
            metavar="N",
            help="read the text of all sequences in windows of --seqlen tokens, each N tokens after the last, and "
            "predict each token once (default: separate sequences)",
        )
        parser.add_argument(
            "--batch-size", type=count, metavar="N", default=1, help="sequences or windows per forward (default: 1)"
        )
        parser.add_argument("--split", default="test", help="train or test, of a named dataset (default: test)")
        parser.add_argument(
            "--seed", type=seed, metavar="N", help="picks sequences; none takes the first ones (default: none)"
        )
        parser.add_argument("--device", help="compute here (default: cpu)")
        add_dtype_argument(parser)
