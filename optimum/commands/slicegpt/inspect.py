"""Flags of `optimum-cli slicegpt inspect`."""

from argparse import ArgumentParser

from optimum.commands.base import CommandInfo

from .arguments import SliceGPTSubcommand, add_dtype_argument, add_model_arguments


class InspectCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="inspect", help="Tell what slicing would make of a model, without loading its weights.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = (
            InspectCommand.COMMAND.help + " Of a sliced checkpoint, tell how it was made. FLOPs are of products with "
            "matrices, for one token, attention scores left out."
        )
        add_model_arguments(parser, tokenizer=False)
        parser.add_argument(
            "--sparsity",
            type=float,
            nargs="*",
            metavar="S",
            default=[0.1, 0.2, 0.25, 0.3],
            help="shares of hidden dimensions to delete (default: 0.1 0.2 0.25 0.3)",
        )
        parser.add_argument(
            "--parameter-reduction",
            type=float,
            nargs="+",
            metavar="R",
            default=[],
            help="shares of parameters to delete, too (default: none)",
        )
        add_dtype_argument(parser, "count bytes in this dtype")
        parser.add_argument(
            "--round-to", type=int, metavar="N", default=8, help="round widths down to a multiple of this (default: 8)"
        )
