"""Flags of `optimum-cli slicegpt compress`."""

from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace

from optimum.commands.base import CommandInfo

from .arguments import (
    ARCHITECTURES,
    DTYPES,
    EMBEDDINGS,
    METRICS,
    ORIENTATIONS,
    ROTATIONS,
    SCHEDULES,
    Dataset,
    Reductions,
    SliceGPTSubcommand,
    Widths,
    add_model_arguments,
    add_output_argument,
    add_rounding_arguments,
    add_text_arguments,
    flag,
    seed,
)
from .parsing import count, increase, natural, positive, share


PARTS = {"stream": ("max_memory", "resume"), "plan": ("device_memory", "host_memory")}
"""Flags that mean something beside another one."""
AFTER_STREAMING = {
    "refuse_above": "optimum-cli slicegpt eval --baseline",
    "eval_dataset": "optimum-cli slicegpt eval",
    "push_to_hub": "hf upload",
    "recover": "optimum-cli slicegpt recover",
}
"""Flags that need the whole model in memory, and what does the same for a result that was streamed."""
OF_ONE_SIZE = ("stream", "recover", "refuse_above", "push_to_hub")


class CompressCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="compress", help="Slice a model and save it as an ordinary checkpoint.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = CompressCommand.COMMAND.help
        # Flags that are not given stay out of the namespace, so the defaults of `SliceGPTConfig` are in one place.
        parser.argument_default = SUPPRESS
        add_model_arguments(parser)
        add_output_argument(parser)
        parser.add_argument(
            "--config",
            metavar="FILE",
            default=None,
            help="take flags from this file, such as the compress.yaml that is written beside every result; those "
            "that are given win",
        )
        parser.add_argument(
            "--model-dtype",
            choices=("auto", *DTYPES),
            default="auto",
            help="load and save the model in this dtype (default: auto, as stored)",
        )
        parser.add_argument(
            "--max-shard-size",
            metavar="SIZE",
            default="50GB",
            help="largest size of one weight file, such as 5GB (default: 50GB)",
        )
        parser.add_argument(
            "--recover",
            action="store_true",
            default=None,
            help="recover the result right away, by the defaults of the command recover; the dense model stays in "
            "memory as the teacher",
        )
        parser.add_argument(
            "--check",
            action=BooleanOptionalAction,
            default=True,
            help="measure what the model lost on text that it was not calibrated on, and let it answer two prompts "
            "before and after; not with --stream (default: yes)",
        )
        parser.add_argument(
            "--refuse-above",
            type=positive,
            metavar="NATS",
            default=None,
            help="write nothing if the model loses more than this per token, on the mean of the kinds of text "
            "(default: no limit, and a warning from 0.5 on)",
        )
        parser.add_argument("--push-to-hub", metavar="REPO_ID", default=None, help="upload the saved model, too")
        parser.add_argument(
            "--plan",
            action="store_true",
            default=False,
            help="only estimate what the run would take, memory, disk and time, and whether there is room for it",
        )
        for place in ("device", "host"):
            parser.add_argument(
                f"--{place}-memory",
                metavar="SIZE",
                default=None,
                help=f"{place} memory of the machine that --plan is for, such as 80GB (default: this machine's)",
            )

        streaming = parser.add_argument_group("models larger than memory")
        streaming.add_argument(
            "--stream",
            action="store_true",
            default=False,
            help="read, slice and write one layer at a time; the result is the same",
        )
        streaming.add_argument(
            "--max-memory",
            metavar="SIZE",
            default=None,
            help="keep this much of activations and second moments in memory, the rest in files beside the output "
            "(default: 1GiB)",
        )
        streaming.add_argument(
            "--resume",
            action="store_true",
            default=False,
            help="resume an interrupted run into this output, if there is one",
        )

        slicing = parser.add_argument_group("slicing")
        size = slicing.add_mutually_exclusive_group()
        size.add_argument(
            "--sparsity",
            type=share,
            metavar="S",
            help="share of hidden dimensions to delete, in [0, 1)",
        )
        size.add_argument(
            "--widths",
            action=Widths,
            type=count,
            nargs="+",
            metavar="K",
            help="width at every site, instead of --sparsity; one number for all of them",
        )
        size.add_argument(
            "--parameter-reduction",
            action=Reductions,
            type=share,
            nargs="+",
            metavar="R",
            help="share of all parameters to delete, in [0, 1), instead of --sparsity and --widths; several make a "
            "folder each in the output, 10, 20, ... in percent (default: 0.2)",
        )
        size.add_argument(
            "--max-loss",
            type=positive,
            metavar="NATS",
            help="search for the smallest size that loses at most this per token, on the mean of the kinds of text; "
            "slices to about three sizes",
        )
        size.add_argument(
            "--max-perplexity-increase",
            type=increase,
            dest="max_loss",
            metavar="PERCENT",
            help="the same limit in percent, such as 10%%",
        )
        size.add_argument(
            "--fit-memory",
            metavar="SIZE",
            help="the size whose weights, in the dtype that they are stored in, and whose cache take no more than "
            "this, such as 6GB",
        )
        slicing.add_argument(
            "--context",
            type=count,
            metavar="N",
            help="with --fit-memory, tokens of the sequence whose cache is counted (default: no cache)",
        )
        slicing.add_argument(
            "--mlp-sparsity",
            type=share,
            metavar="S",
            help="share of the neurons in each MLP to delete, in [0, 1) (default: none, or with --parameter-reduction "
            "the share that goes best with the width)",
        )
        slicing.add_argument(
            "--schedule",
            choices=SCHEDULES,
            help="keep equally many neurons in every MLP, or more where they add more to the stream, which no stock "
            "class can hold (default: uniform)",
        )
        slicing.add_argument(
            "--rotation",
            choices=ROTATIONS,
            help="axes and a shortcut for every block, or axes and a width that all blocks share (default: shared)",
        )
        slicing.add_argument(
            "--refit",
            action=BooleanOptionalAction,
            help="fit readers and writers block by block, so that the sliced stream follows the dense (default: yes)",
        )
        slicing.add_argument(
            "--refine",
            type=int,
            metavar="STEPS",
            help="steps for which each MLP is trained once it is fitted (default: 30, with more tokens up to 120)",
        )
        slicing.add_argument(
            "--metric",
            choices=METRICS,
            help="weight all directions of the stream alike, or by the gradient of the loss (default: none)",
        )
        slicing.add_argument(
            "--architecture",
            choices=ARCHITECTURES,
            help="class of the result: one of transformers' own, which every tool loads, or this package's, which "
            "holds all settings (default: auto, transformers' own where the settings allow it)",
        )
        add_rounding_arguments(slicing)
        slicing.add_argument(
            "--slice-head",
            action="store_true",
            help="with --rotation per_block, slice the input of the head, too; shared axes always slice it",
        )
        slicing.add_argument(
            "--embeddings",
            choices=EMBEDDINGS,
            help="a head tied to its embedding: narrow slices their matrix once, tied keeps it between projections, "
            "sliced unties them (default: auto, narrow in a stock architecture)",
        )
        slicing.add_argument(
            "--orientation", choices=ORIENTATIONS, help="random spreads outliers over the kept axes (default: pca)"
        )

        calibration = parser.add_argument_group("calibration")
        add_text_arguments(calibration, calibration=True)
        calibration.add_argument(
            "--own-tokens",
            type=natural,
            metavar="N",
            help="calibration tokens that the model writes itself, 0 for none (default: half of all, at most 65536)",
        )
        calibration.add_argument("--batch-size", type=count, metavar="N", help="sequences per forward (default: 8)")
        calibration.add_argument(
            "--seed",
            type=seed,
            metavar="N",
            help="picks sequences and random orientations; none takes the first sequences (default: 0)",
        )
        calibration.add_argument(
            "--device", help="compute one layer at a time here, and perplexity (default: where the model is)"
        )
        calibration.add_argument(
            "--dtype",
            choices=("auto", *DTYPES),
            help="of the calibration pass; auto is bfloat16 instead of float32 where the processor multiplies that in "
            "its hardware (default: the model's, or float32 where it does not multiply that)",
        )
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
            "--eval-nsamples", type=count, metavar="N", default=128, help="the first N sequences (default: 128)"
        )
        evaluation.add_argument(
            "--eval-seqlen", type=count, metavar="N", default=2048, help="tokens per sequence (default: 2048)"
        )

    @staticmethod
    def check(args: Namespace):
        given = vars(args)
        if isinstance(given.get("parameter_reduction"), list):
            for name in filter(given.get, OF_ONE_SIZE):
                raise ValueError(
                    f"{flag(name)} is for one size; give one --parameter-reduction, or leave {flag(name)} out."
                )
        for whole, names in PARTS.items():
            for name in names:
                if given[name] and not given[whole]:
                    raise ValueError(f"{flag(name)} is for --{whole}; give both, or neither.")
        for name, remedy in AFTER_STREAMING.items():
            if args.stream and not args.plan and given[name] is not None:
                raise ValueError(f"{flag(name)} needs the whole model in memory; use {remedy} afterwards.")
