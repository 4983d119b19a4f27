"""Flags of `optimum-cli slicegpt export`."""

from argparse import ArgumentParser

from optimum.commands.base import CommandInfo

from .arguments import SliceGPTSubcommand, add_model_arguments, add_output_argument


class ExportCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="export", help="Save a model sliced with one shared rotation as a stock architecture.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = ExportCommand.COMMAND.help
        add_model_arguments(parser)
        add_output_argument(parser)
