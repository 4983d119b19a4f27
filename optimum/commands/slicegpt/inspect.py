"""Flags of `optimum-cli slicegpt inspect`."""

from argparse import SUPPRESS, ArgumentParser, Namespace

from optimum.commands.base import CommandInfo

from .arguments import (
    SliceGPTSubcommand,
    add_dtype_argument,
    add_model_arguments,
    add_overwrite_argument,
    add_rounding_arguments,
    add_text_arguments,
    flag,
    seed,
)
from .parsing import count, html_file, share


class InspectCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(
        name="inspect", help="Show what slicing would make of a model, or how a sliced model was made."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = (
            InspectCommand.COMMAND.help + " Loads weights only if a dataset is given. FLOPs are of products with "
            "matrices, for one token, attention scores left out."
        )
        add_model_arguments(parser)
        parser.add_argument(
            "--sparsity",
            type=share,
            nargs="*",
            metavar="S",
            help="shares of hidden dimensions to delete (default: 0.1 0.2 0.25 0.3)",
        )
        parser.add_argument(
            "--parameter-reduction",
            type=share,
            nargs="+",
            metavar="R",
            default=[],
            help="shares of parameters to delete, too (default: none)",
        )
        add_dtype_argument(parser, "count bytes in this dtype, and load weights in it")
        add_rounding_arguments(parser)
        parser.add_argument(
            "--report",
            type=html_file,
            metavar="FILE",
            help="write this as one HTML file with pictures; the file must be absent",
        )
        parser.add_argument("--figures", metavar="FOLDER", help="write the pictures as PNG files: absent, or empty")
        add_overwrite_argument(parser)

        energy = parser.add_argument_group("energy of the stream, measured where a dataset is given")
        energy.argument_default = SUPPRESS  # Only flags that were given are then refused without a dataset.
        add_text_arguments(energy, default="none, and nothing is measured", calibration=True)
        energy.add_argument("--batch-size", type=count, metavar="N", help="sequences per forward (default: 8)")
        energy.add_argument(
            "--seed", type=seed, metavar="N", help="picks sequences; none takes the first ones (default: 0)"
        )
        energy.add_argument("--device", help="compute one layer at a time here (default: cpu)")

    @staticmethod
    def check(args: Namespace):
        calibration = ("text_column", "nsamples", "seqlen", "batch_size", "seed", "device")
        given = [flag(name) for name in calibration if name in args]
        if given and "dataset" not in args:
            raise ValueError(
                f"{', '.join(given)} without --dataset: there is nothing to measure. Give a dataset, or leave it out."
            )
