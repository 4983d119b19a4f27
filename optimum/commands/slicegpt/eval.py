"""Flags of `optimum-cli slicegpt eval`."""

from argparse import ArgumentParser

from optimum.commands.base import CommandInfo

from .arguments import SliceGPTSubcommand, add_dtype_argument, add_model_arguments, add_text_arguments, seed


class EvalCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="eval", help="Measure the perplexity of a model, dense or sliced.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = EvalCommand.COMMAND.help
        add_model_arguments(parser)
        add_text_arguments(parser)
        parser.set_defaults(dataset="auto", nsamples=128, seqlen=2048)
        parser.add_argument("--split", default="test", help="train or test, of a named dataset (default: test)")
        parser.add_argument(
            "--seed", type=seed, metavar="N", help="picks sequences; none takes the first ones (default: none)"
        )
        parser.add_argument("--device", help="compute here (default: cpu)")
        add_dtype_argument(parser)
