"""Flags of `optimum-cli slicegpt benchmark`."""

from argparse import ArgumentParser

from optimum.commands.base import CommandInfo

from .arguments import (
    SliceGPTSubcommand,
    add_baseline_argument,
    add_dtype_argument,
    add_model_arguments,
    add_overwrite_argument,
)
from .parsing import count, natural


class BenchmarkCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="benchmark", help="Measure speed and memory of a model, alone or beside another.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = (
            BenchmarkCommand.COMMAND.help + " Two models take turns in one process, so that noise affects both alike."
        )
        add_model_arguments(parser, tokenizer=False)
        add_baseline_argument(parser)
        parser.add_argument(
            "--random-weights",
            action="store_true",
            default=False,
            help="read configurations only, and build the models with random weights",
        )
        parser.add_argument(
            "--batch-size", type=count, nargs="+", metavar="N", default=[1], help="numbers of sequences (default: 1)"
        )
        parser.add_argument("--seqlen", type=count, metavar="N", default=512, help="tokens per prompt (default: 512)")
        parser.add_argument(
            "--new-tokens",
            type=count,
            metavar="N",
            default=32,
            help="tokens to generate afterwards (default: 32)",
        )
        parser.add_argument(
            "--warmup",
            type=natural,
            metavar="N",
            default=2,
            help="passes that do not count, before the others (default: 2)",
        )
        parser.add_argument("--repeats", type=count, metavar="N", default=7, help="passes that count (default: 7)")
        parser.add_argument("--compile", action="store_true", default=False, help="measure with torch.compile")
        parser.add_argument("--seed", type=natural, metavar="N", default=0, help="of the random prompts (default: 0)")
        parser.add_argument("--device", help="compute here (default: cpu)")
        add_dtype_argument(parser)
        parser.add_argument("--output", metavar="FILE", help="write what --json prints to this file, too")
        add_overwrite_argument(parser)
