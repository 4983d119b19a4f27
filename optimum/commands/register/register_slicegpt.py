"""
`optimum-cli slicegpt`: the parsers. What the commands do is in `optimum_slicegpt.cli`, which is imported when one of
them runs, so that help is instant.

No `__init__.py` on this path: `optimum` is a namespace package, and `optimum-cli` looks here for every plugin.
"""

import sys
from argparse import SUPPRESS, Action, ArgumentParser, BooleanOptionalAction
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


DTYPES = ("float16", "bfloat16", "float32", "float64")
ORIENTATIONS = ("pca", "random")
ROTATIONS = ("per_block", "shared")
METRICS = ("none", "fisher")
EMBEDDINGS = ("auto", "tied", "sliced")


class Dataset(Action):
    """One value is a name or a path; several are paths."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else [Path(value) for value in values])


def seed(text: str) -> int | None:
    return None if text == "none" else int(text)


def add_model_arguments(parser: ArgumentParser, tokenizer: bool = True) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="model on the Hub, or path of a checkpoint")
    if tokenizer:
        parser.add_argument("--tokenizer", metavar="NAME", help="name or path (default: the model's own)")
    parser.add_argument(
        "--trust-remote-code", action="store_true", default=False, help="run Python code that comes with the model"
    )
    parser.add_argument("--json", action="store_true", default=False, help="print one JSON object instead of a table")


def add_text_arguments(group) -> None:
    """Which text, and how it becomes sequences of tokens."""
    group.add_argument(
        "--dataset",
        action=Dataset,
        nargs="+",
        metavar="DATA",
        help="wikitext2, ptb, c4, alpaca or python-docs; to slice also self, text that the model writes; or paths of "
        "txt, json, jsonl or parquet files "
        "(default: auto, wikitext2 where it can be had and otherwise python-docs)",
    )
    group.add_argument(
        "--text-column", metavar="NAME", help="column that holds the text (default: text, or the only one of strings)"
    )
    group.add_argument("--nsamples", type=int, metavar="N", help="number of sequences (default: 128)")
    group.add_argument(
        "--seqlen", type=int, metavar="N", help="tokens per sequence, at most what the model takes (default: 2048)"
    )


class SliceGPTSubcommand(BaseOptimumCLICommand):
    """Runs a function of `optimum_slicegpt.cli`. What a user can put right is told in a line, without a traceback."""

    function: str

    def run(self):
        try:
            from optimum_slicegpt import cli

            getattr(cli, self.function)(self.args)
        except (ValueError, OSError) as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)


class CompressCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="compress", help="Slice a model and save it as an ordinary checkpoint.")
    function = "compress"

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = CompressCommand.COMMAND.help
        # Flags that are not given stay out of the namespace, so the defaults of `SliceGPTConfig` are in one place.
        parser.argument_default = SUPPRESS
        add_model_arguments(parser)
        parser.add_argument(
            "--output", required=True, metavar="FOLDER", help="where to save: absent, or an empty folder"
        )
        parser.add_argument(
            "--model-dtype",
            choices=("auto", *DTYPES),
            default="auto",
            help="load and save the model in this dtype (default: auto, as stored)",
        )
        parser.add_argument("--push-to-hub", metavar="REPO_ID", default=None, help="upload the saved model, too")

        slicing = parser.add_argument_group("slicing")
        slicing.add_argument(
            "--sparsity",
            type=float,
            metavar="S",
            help="share of hidden dimensions to delete, in [0, 1)",
        )
        slicing.add_argument(
            "--widths", type=int, nargs="+", metavar="K", help="width at every site, in place of --sparsity"
        )
        slicing.add_argument(
            "--parameter-reduction",
            type=float,
            metavar="R",
            help="share of all parameters to delete, in [0, 1), in place of --sparsity and --widths (default: 0.2)",
        )
        slicing.add_argument(
            "--mlp-sparsity",
            type=float,
            metavar="S",
            help="share of the neurons inside each MLP to delete, in [0, 1) (default: none, or with "
            "--parameter-reduction what goes best with the width)",
        )
        slicing.add_argument(
            "--rotation",
            choices=ROTATIONS,
            help="axes and a shortcut for every block, or axes and a width that all share (default: shared)",
        )
        slicing.add_argument(
            "--refit",
            action=BooleanOptionalAction,
            help="fit what blocks read and write, in order, so that the stream follows the dense one (default: yes)",
        )
        slicing.add_argument(
            "--metric",
            choices=METRICS,
            help="weigh directions of the stream by the gradient of the loss, or all alike (default: none)",
        )
        slicing.add_argument(
            "--round-to", type=int, metavar="N", help="round widths down to a multiple of this (default: 8)"
        )
        slicing.add_argument("--slice-head", action="store_true", help="slice the input of the head, too")
        slicing.add_argument(
            "--embeddings",
            choices=EMBEDDINGS,
            help="a head tied to its embedding stays so, or both are sliced (default: auto, the smaller)",
        )
        slicing.add_argument(
            "--orientation", choices=ORIENTATIONS, help="random spreads outliers over the kept axes (default: pca)"
        )

        calibration = parser.add_argument_group("calibration")
        add_text_arguments(calibration)
        calibration.add_argument("--batch-size", type=int, metavar="N", help="sequences per forward (default: 8)")
        calibration.add_argument(
            "--seed",
            type=seed,
            metavar="N",
            help="picks sequences and random orientations; none takes the first sequences (default: 0)",
        )
        calibration.add_argument(
            "--device", help="compute one layer at a time here, and perplexity (default: where the model is)"
        )
        calibration.add_argument("--dtype", choices=DTYPES, help="of the calibration pass (default: the model's)")
        calibration.add_argument(
            "--offload-activations", action="store_true", help="keep calibration activations in host memory"
        )

        evaluation = parser.add_argument_group("perplexity before and after")
        evaluation.add_argument(
            "--eval-dataset",
            action=Dataset,
            nargs="+",
            metavar="DATA",
            default=None,
            help="measure on the test split of this dataset, or on these files (default: do not measure)",
        )
        evaluation.add_argument(
            "--eval-nsamples", type=int, metavar="N", default=128, help="the first N sequences (default: 128)"
        )
        evaluation.add_argument(
            "--eval-seqlen", type=int, metavar="N", default=2048, help="tokens per sequence (default: 2048)"
        )


class EvalCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="eval", help="Measure the perplexity of a model, dense or sliced.")
    function = "evaluate"

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
        parser.add_argument(
            "--dtype",
            choices=("auto", *DTYPES),
            default="auto",
            help="load the model in this dtype (default: auto, as stored)",
        )


class InspectCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="inspect", help="Tell what slicing would make of a model, without loading its weights.")
    function = "inspect"

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
        parser.add_argument(
            "--dtype",
            choices=("auto", *DTYPES),
            default="auto",
            help="count bytes in this dtype (default: auto, as stored)",
        )
        parser.add_argument(
            "--round-to", type=int, metavar="N", default=8, help="round widths down to a multiple of this (default: 8)"
        )


class ExportCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="export", help="Save a model sliced with one shared rotation as a stock architecture.")
    function = "export"

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = ExportCommand.COMMAND.help
        add_model_arguments(parser)
        parser.add_argument(
            "--output", required=True, metavar="FOLDER", help="where to save: absent, or an empty folder"
        )


class SliceGPTCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="slicegpt", help="Slice language models: smaller, still dense (SliceGPT).")
    SUBCOMMANDS = tuple(
        CommandInfo(name=command.COMMAND.name, help=command.COMMAND.help, subcommand_class=command)
        for command in (CompressCommand, InspectCommand, EvalCommand, ExportCommand)
    )


REGISTER_COMMANDS = [SliceGPTCommand]
