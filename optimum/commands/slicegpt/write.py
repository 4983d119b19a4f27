"""Flags of `optimum-cli slicegpt write`."""

from argparse import ArgumentParser

from optimum.commands.base import CommandInfo

from .arguments import SliceGPTSubcommand, add_dtype_argument, add_model_arguments, seed
from .parsing import count, natural


class WriteCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="write", help="Let a model write the text that it is calibrated on, for later runs.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = (
            WriteCommand.COMMAND.help + " `compress` writes what it needs by itself; `compress --stream` takes only "
            "what is written."
        )
        add_model_arguments(parser)
        parser.add_argument(
            "--tokens", type=count, metavar="N", default=65_536, help="this many are there afterwards (default: 65536)"
        )
        parser.add_argument(
            "--seqlen",
            type=count,
            metavar="N",
            default=256,
            help="tokens per sequence, at most what the model takes (default: 256)",
        )
        parser.add_argument("--seed", type=seed, metavar="N", default=0, help="seeds the draws (default: 0)")
        parser.add_argument("--device", help="write here (default: cpu)")
        add_dtype_argument(parser)
        parser.add_argument(
            "--print", type=natural, metavar="N", default=0, help="print the first N sequences as text (default: 0)"
        )
