"""Flags of `optimum-cli slicegpt recover`."""

from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction

from optimum.commands.base import CommandInfo

from .arguments import (
    DATASETS,
    DTYPES,
    Dataset,
    SliceGPTSubcommand,
    add_dtype_argument,
    add_model_arguments,
    add_output_argument,
)
from .parsing import count, natural


class RecoverCommand(SliceGPTSubcommand):
    COMMAND = CommandInfo(name="recover", help="Fine-tune a sliced model; the result is a sliced model again.")

    @staticmethod
    def parse_args(parser: ArgumentParser):
        parser.description = (
            RecoverCommand.COMMAND.help + " Also runs under accelerate launch. A run with --checkpoints that was "
            "cut off continues when the same command is given again with --resume."
        )
        # Flags that are not given stay out of the namespace, so the defaults of `RecoveryConfig` are in one place.
        parser.argument_default = SUPPRESS
        add_model_arguments(parser)
        parser.set_defaults(tokenizer=None)
        add_output_argument(parser)
        add_dtype_argument(parser, "load, train and save the model in this dtype")
        parser.add_argument(
            "--checkpoints",
            metavar="FOLDER",
            default=None,
            help="keep the best and the last checkpoint here (default: in a temporary folder)",
        )
        parser.add_argument(
            "--resume",
            action="store_true",
            default=False,
            help="continue from the last complete checkpoint in --checkpoints",
        )
        parser.add_argument(
            "--keep-adapter", action="store_true", help="save the adapter alone, instead of merging it into the model"
        )

        data = parser.add_argument_group("data")
        data.add_argument(
            "--dataset",
            action=Dataset,
            nargs="+",
            metavar="DATA",
            help=f"beside the text of the dense model: {DATASETS}; or paths of txt, json, jsonl or parquet files, "
            "which hold texts or conversations: messages, or instruction, input and output; or self, text of the "
            "dense model alone (default: auto, pile-10k where it can be loaded and otherwise python)",
        )
        data.add_argument(
            "--own-tokens",
            type=natural,
            metavar="N",
            help="tokens that the dense model writes (default: half of all, and none with --no-distill)",
        )
        data.add_argument(
            "--text-column", metavar="NAME", help="column that holds texts (default: text, or the only one of strings)"
        )
        data.add_argument(
            "--mask-prompts",
            action=BooleanOptionalAction,
            help="with --no-distill, learn only the answers of conversations (default: yes)",
        )
        data.add_argument("--nsamples", type=count, metavar="N", help="sequences, held-out ones, too (default: 768)")
        data.add_argument(
            "--seqlen",
            type=count,
            metavar="N",
            help="tokens per sequence, at most the model's (default: 512)",
        )
        data.add_argument(
            "--held-out",
            type=number,
            metavar="N",
            help="sequences to measure on, never trained on: a number, or a share below 1 (default: 0.02)",
        )

        lora = parser.add_argument_group("what is trained")
        lora.add_argument("--full", action="store_true", help="all parameters; needs float32 weights")
        lora.add_argument("--lora-rank", type=count, metavar="R", help="rank of LoRA (default: 64)")
        lora.add_argument("--lora-alpha", type=number, metavar="A", help="scales LoRA by A / R (default: the rank)")
        lora.add_argument("--lora-dropout", type=float, metavar="P", help="dropout before LoRA (default: 0.0)")
        lora.add_argument("--shortcuts", action="store_true", help="LoRA on the linear layers that slicing added, too")

        training = parser.add_argument_group("training")
        training.add_argument(
            "--learning-rate", type=float, metavar="X", help="at its highest (default: 1e-3, and 2e-5 with --full)"
        )
        training.add_argument("--epochs", type=number, metavar="X", help="passes over the sequences (default: 1)")
        training.add_argument("--max-steps", type=count, metavar="N", help="number of steps, instead of --epochs")
        training.add_argument(
            "--batch-size", type=count, metavar="N", help="sequences per process and forward (default: 4)"
        )
        training.add_argument(
            "--gradient-accumulation", type=count, metavar="N", help="forwards per step (default: 1)"
        )
        training.add_argument(
            "--eval-steps",
            type=number,
            metavar="N",
            help="steps between evaluations and checkpoints: a number, or a share of all below 1 (default: 0.2)",
        )
        training.add_argument(
            "--patience",
            type=patience,
            metavar="N",
            help="end after N evaluations without improvement; none never ends early (default: 3)",
        )
        training.add_argument(
            "--bf16",
            action=BooleanOptionalAction,
            help="compute in bfloat16, by autocast (default: if the hardware does)",
        )
        training.add_argument(
            "--use-cpu", action="store_true", help="train on the CPU even if there is an accelerator"
        )
        training.add_argument("--seed", type=natural, metavar="N", help="of data, adapter and dropout (default: 0)")

        distillation = parser.add_argument_group("distillation")
        distillation.add_argument(
            "--distill",
            action=BooleanOptionalAction,
            help="learn from the dense model; without it from data alone, which makes a specialist (default: yes)",
        )
        distillation.add_argument(
            "--teacher",
            metavar="NAME",
            default=None,
            help="the dense model (default: the base model that the record of the sliced model names)",
        )
        distillation.add_argument(
            "--adapt-teacher", action="store_true", help="train the teacher on the same data first"
        )
        distillation.add_argument(
            "--temperature", type=number, metavar="T", help="divides the logits of model and teacher (default: 1.0)"
        )
        distillation.add_argument(
            "--distill-weight", type=number, metavar="W", help="(1 - W) * cross-entropy + W * T² * KL (default: 1.0)"
        )
        distillation.add_argument(
            "--teacher-dtype", choices=DTYPES, help="load the teacher in this dtype (default: bfloat16)"
        )
        distillation.add_argument(
            "--teacher-device", help="compute the teacher on this device (default: where the model is trained)"
        )


def number(text: str) -> int | float:
    """Reads an integer as an `int`, for 1 step is not the share 1.0."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def patience(text: str) -> int | None:
    """Reads a number of evaluations; `none` means no early end."""
    return None if text == "none" else int(text)
