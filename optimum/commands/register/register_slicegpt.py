"""
`optimum-cli slicegpt`. Its parsers are in `optimum/commands/slicegpt`, its work is in `optimum_slicegpt.commands`. The
latter is imported when a command runs, so that help is instant.

These folders have no `__init__.py`: `optimum` is a namespace package, and `optimum-cli` looks here for every plugin.
"""

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.slicegpt.benchmark import BenchmarkCommand
from optimum.commands.slicegpt.compress import CompressCommand
from optimum.commands.slicegpt.eval import EvalCommand
from optimum.commands.slicegpt.export import ExportCommand
from optimum.commands.slicegpt.inspect import InspectCommand
from optimum.commands.slicegpt.parsing import Parser, Version
from optimum.commands.slicegpt.recover import RecoverCommand
from optimum.commands.slicegpt.write import WriteCommand


class SliceGPTCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="slicegpt", help="Slice language models: smaller, still dense (SliceGPT).")
    COMMANDS = (
        CompressCommand,
        WriteCommand,
        InspectCommand,
        RecoverCommand,
        EvalCommand,
        BenchmarkCommand,
        ExportCommand,
    )
    SUBCOMMANDS = tuple(
        CommandInfo(name=command.COMMAND.name, help=command.COMMAND.help, subcommand_class=command)
        for command in COMMANDS
    )

    @staticmethod
    def parse_args(parser: ArgumentParser):
        Parser.adopt(parser)  # Parsers of subcommands are of the class of their parent's.
        parser.description = SliceGPTCommand.COMMAND.help
        parser.add_argument("--version", action=Version, help="print the versions of what computes")


REGISTER_COMMANDS = [SliceGPTCommand]
