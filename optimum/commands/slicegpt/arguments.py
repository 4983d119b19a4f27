"""Flags that several commands of `optimum-cli slicegpt` share. No heavy module is imported, so help is instant."""

import signal
import sys
import threading
from argparse import Action, ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand

from .parsing import Version, count, natural
from .places import NAMES, check_places


DTYPES = ("float16", "bfloat16", "float32", "float64")
ORIENTATIONS = ("pca", "random")
ROTATIONS = ("per_block", "shared")
SCHEDULES = ("uniform", "energy")
METRICS = ("none", "fisher")
ARCHITECTURES = ("auto", "stock", "sliced")
EMBEDDINGS = ("auto", "narrow", "tied", "sliced")
DATASETS = "pile-10k, wikitext2, ptb, c4, alpaca, python or python-docs"


class SliceGPTSubcommand(BaseOptimumCLICommand):
    """A command that runs the module of its name in `optimum_slicegpt.commands`. Errors of its user take one line."""

    def __init__(self, *args, from_defaults_factory: bool = False, **kwargs):
        super().__init__(*args, from_defaults_factory=from_defaults_factory, **kwargs)
        if not from_defaults_factory:
            self.parser.allow_abbrev = False
            add_manners(self.parser)

    @staticmethod
    def check(args: Namespace) -> None:
        """
        Checks that flags do not contradict each other, before heavy imports.

        Raises:
            ValueError: they do.
        """

    def run(self):
        # A run that is told to end, by timeout or a cluster, leaves no more behind than after Ctrl-C.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            self.check(self.args)
            check_places(self.args)
            import_module("optimum_slicegpt.commands.printing").set_verbosity(self.args)
            import_module(f"optimum_slicegpt.commands.{self.COMMAND.name}").run(self.args)
        except (ImportError, OSError, ValueError) as error:
            if self.args.verbose:
                raise
            # In one piece: other processes write there, too.
            sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)


class Dataset(Action):
    """An action that reads one value as a name or a path, and several as names and paths, never as texts."""

    def __call__(self, parser, namespace, values, option_string=None):
        several = [value if value in NAMES else Path(value) for value in values]
        setattr(namespace, self.dest, values[0] if len(values) == 1 else several)


class Widths(Action):
    """An action that reads one number as the width of all sites."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values if len(values) > 1 else values[0])


class Reductions(Action):
    """An action that reads one number as the size of the result, and several as sizes, from the largest model on."""

    def __call__(self, parser, namespace, values, option_string=None):
        sizes = sorted(set(values))
        setattr(namespace, self.dest, sizes if len(sizes) > 1 else sizes[0])


class Datasets(Dataset):
    """An action that adds a dataset each time that the flag is given."""

    def __call__(self, parser, namespace, values, option_string=None):
        earlier = getattr(namespace, self.dest) or []
        super().__call__(parser, namespace, values)
        setattr(namespace, self.dest, [*earlier, getattr(namespace, self.dest)])


def seed(text: str) -> int | None:
    """Reads a seed; `none` means no shuffling."""
    return None if text == "none" else natural(text)


def flag(name: str) -> str:
    """Returns the flag of an attribute of the arguments."""
    return f"--{name.replace('_', '-')}"


def add_manners(parser: ArgumentParser) -> None:
    """Adds the flags of every command that say how it behaves."""
    manners = parser.add_argument_group("manners")
    loud = manners.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", default=False, help="no progress and no warnings")
    loud.add_argument(
        "--verbose", action="store_true", default=False, help="say more; show where in the code an error came up"
    )
    manners.add_argument("--version", action=Version, help="print the versions of what computes")


def add_model_arguments(parser: ArgumentParser, tokenizer: bool = True) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="model on the Hub, or path of a checkpoint")
    if tokenizer:
        parser.add_argument("--tokenizer", metavar="NAME", help="name or path (default: the model's own)")
    parser.add_argument(
        "--trust-remote-code", action="store_true", default=False, help="run Python code that comes with the model"
    )
    parser.add_argument("--json", action="store_true", default=False, help="print one JSON object instead of a table")


def add_baseline_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--baseline", metavar="NAME", help="measure this model, too: the dense one, for example")


def add_text_arguments(
    group,
    action: type[Action] = Dataset,
    default: str = "auto, pile-10k where it can be loaded and otherwise python",
    calibration: bool = False,
) -> None:
    """
    Adds the flags that name a text and the number and length of its sequences.

    Args:
        group: parser or group of flags.
        action (`type`): reads the values of `--dataset`.
        default (`str`): what is read without `--dataset`.
        calibration (`bool`): whether the model may write the text, and several datasets may be mixed.
    """
    more = "; or self, text that the model writes; several of them make a mixture" if calibration else ""
    group.add_argument(
        "--dataset",
        action=action,
        nargs="+",
        metavar="DATA",
        help=f"{DATASETS}; or paths of txt, json, jsonl or parquet files{more} (default: {default})",
    )
    group.add_argument(
        "--text-column", metavar="NAME", help="column that holds the text (default: text, or the only one of strings)"
    )
    group.add_argument("--nsamples", type=count, metavar="N", help="number of sequences (default: 128)")
    group.add_argument(
        "--seqlen", type=count, metavar="N", help="tokens per sequence, at most what the model takes (default: 2048)"
    )


def add_rounding_arguments(group) -> None:
    default = "the largest power of two that divides the size, up to 1/16 of it and 256"
    group.add_argument("--round-to", type=count, metavar="N", help=f"round widths to multiples of this ({default})")
    group.add_argument(
        "--round-neurons-to", type=count, metavar="N", help="round numbers of neurons to multiples of this (likewise)"
    )


def add_output_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to save: absent, or an empty folder")
    add_overwrite_argument(parser)


def add_overwrite_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        default=False,
        help="replace an earlier result, once the new one is complete",
    )


def add_dtype_argument(parser: ArgumentParser, help: str = "load the model in this dtype") -> None:
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help=f"{help} (default: auto, as stored)"
    )
