"""Recovers a sliced model: checks everything, trains, puts back what training changed, and records the result."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel
from transformers.trainer_utils import set_seed

from ..distributed import join_processes
from ..modeling.checks import check_sliced, check_without_adapters
from ..modeling.contexts import evaluating, multiplies, undisturbed
from ..modeling.decoder import Decoder
from ..record import public_name
from .adapters import lora_config, remove_adapters
from .configuration import LORA_RATE, RecoveryConfig
from .mixture import load_mixture
from .packing import PackedSequences
from .resuming import TEACHER, check_checkpoints, checkpoint_folder, recovery_arguments
from .teacher import find_teacher
from .trainer import uses_cpu
from .training import Training, dtypes_restored, restored, seeded, train, widen


@undisturbed(gradients=True)
def recover(
    model: PreTrainedModel,
    tokenizer: Any = None,
    config: RecoveryConfig | None = None,
    *,
    teacher: PreTrainedModel | str | os.PathLike | None = None,
    checkpoints: str | os.PathLike | None = None,
    resume: bool = False,
) -> PreTrainedModel | PeftModel:
    """
    Fine-tunes a sliced model in place, by PEFT and `Trainer`, and keeps the weights that are best on held-out
    sequences of every kind of text.

    By default the dense model is the teacher: the sliced model learns its distribution over the next token, on text
    that the dense model writes and on other text. So it stays the model that it was made of. With `distill=False` it
    learns the text of `dataset` itself, and becomes a specialist for it.

    Runs in as many processes as `accelerate launch` starts; each of them has the result. All checks run before
    anything changes. With adapters, an interrupted run leaves the model as it was.

    To be able to resume, pass `checkpoints`. After an interruption, call this again with the same arguments and
    `resume=True`. The last complete checkpoint there has weights, optimizer, schedule, data order and random states,
    so the result is that of a run without interruption.

    Args:
        model (`PreTrainedModel`): a sliced causal language model.
        tokenizer (`str` or tokenizer, *optional*): the object, its name or its path. By default `model.name_or_path`.
        config ([`RecoveryConfig`], *optional*): the settings. By default `RecoveryConfig()`.
        teacher (`PreTrainedModel`, `str` or `os.PathLike`, *optional*):
            With `config.distill`, the dense model. A loaded one keeps its device; it may be on the CPU in bfloat16. By
            default, the model on the Hub from which this one was sliced. It is left as it is.
        checkpoints (`str` or `os.PathLike`, *optional*):
            Folder for the best checkpoint and the last one. They stay there. By default a temporary folder.
        resume (`bool`, defaults to `False`):
            Continue the run in `checkpoints`, or start it again if it has no complete checkpoint yet.

    Returns:
        `PreTrainedModel`: `model` itself, adapters merged; or with `config.keep_adapter` a `PeftModel` around it.
        The record of the recovery is in `config.slicegpt["recovery"]` of the model.

    Raises:
        OSError: the data, the tokenizer or the teacher are not there.
        TypeError: `config` is no [`RecoveryConfig`].
        ValueError: the model, the data, the teacher or the checkpoints cannot be used; the loss became infinite.
    """
    config = config or RecoveryConfig()
    folder = None if checkpoints is None else Path(checkpoints)
    check_recoverable(model, config)
    adapter = None if config.full else lora_config(model, config)
    processes = join_processes(cpu=uses_cpu(config))
    teacher = find_teacher(teacher, model, config, processes.device)
    guide_adapter = _teacher_adapter(teacher, config) if config.adapt_teacher else None
    sequences = load_mixture(config, tokenizer or model.name_or_path, model, teacher, processes)
    arguments = recovery_arguments(config, sequences, model, teacher, processes)
    check_checkpoints(folder, arguments, resume)

    with (
        seeded(config.seed),
        restored(model),
        checkpoint_folder(folder, processes, None if resume else arguments) as folder,
        _adapted_teacher(teacher, guide_adapter, config, folder / TEACHER, sequences, resume) as (guide, perplexity),
    ):
        training = train(model, adapter, config, folder, sequences, guide, resume=resume)
        processes.wait_for_everyone()  # The folder may be a temporary one, which is deleted next.
        recovered = training.model
        if adapter and not config.keep_adapter:
            recovered = remove_adapters(recovered, training.trainable, merge=True)

    record = _record(training, config, adapter, sequences, processes, teacher, perplexity)
    model.config.slicegpt = (model.config.slicegpt or {}) | {"recovery": record}
    return recovered.eval()


def check_recoverable(model: PreTrainedModel, config: RecoveryConfig) -> None:
    """
    Checks that a model can be recovered.

    Args:
        model (`PreTrainedModel`): any model.
        config ([`RecoveryConfig`]): the settings.

    Raises:
        TypeError: `config` is no [`RecoveryConfig`].
        ValueError: the model is not sliced or has no language model's head; it carries adapters; it is in half
            precision, and all parameters are to be trained.
    """
    if not isinstance(config, RecoveryConfig):
        raise TypeError(f"config must be a RecoveryConfig, such as RecoveryConfig(nsamples=1000); got {config!r}.")
    check_sliced(model, "slice the model first")
    if not hasattr(model, Decoder(model).head_name):
        raise ValueError(f"Cannot recover a {type(model).__name__}; load the checkpoint with AutoModelForCausalLM.")
    check_without_adapters(model, "The model", "recover")
    check_dtype(model, config)


def check_dtype(model: PreTrainedModel, config: RecoveryConfig) -> None:
    """
    Checks that a model, dense or sliced, is stored in a dtype in which it can be trained as the settings say.

    Raises:
        ValueError: it is in half precision, and all parameters are to be trained.
    """
    if config.full and model.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"full=True with weights in {model.dtype}, in which small steps are rounded away; load the model with "
            "dtype float32. It is computed in bfloat16 nevertheless, where the hardware multiplies it (bf16)."
        )


def _teacher_config(config: RecoveryConfig) -> RecoveryConfig:
    """Returns the settings to adapt a teacher with: always by adapters, and none on layers that slicing adds."""
    rate = LORA_RATE if config.full else config.learning_rate
    return replace(config, full=False, shortcuts=False, learning_rate=rate)


def _teacher_adapter(teacher: PreTrainedModel, config: RecoveryConfig) -> LoraConfig:
    check_without_adapters(teacher, "The teacher", "recover")
    return lora_config(teacher, _teacher_config(config))


@contextmanager
def _adapted_teacher(
    teacher: PreTrainedModel | None,
    adapter: LoraConfig | None,
    config: RecoveryConfig,
    folder: Path,
    sequences: PackedSequences,
    resume: bool,
) -> Iterator[tuple[PreTrainedModel | PeftModel | None, float | None]]:
    """
    Yields the teacher in evaluation mode, and its held-out perplexity if it is adapted. With `adapter`, adapters are
    trained on the student's sequences first, and removed at the end.
    """
    if teacher is None:
        yield None, None
        return
    with evaluating(teacher), restored(teacher) if adapter else dtypes_restored(teacher):
        if not (config.bf16 or multiplies(teacher.dtype, teacher.device)):
            widen(teacher)
        if adapter is None:
            yield teacher, None
            return
        device = teacher.device
        training = train(teacher, adapter, _teacher_config(config), folder, sequences, resume=resume)
        try:
            # A resumed run may skip this training, and must draw the same random numbers for the student.
            set_seed(config.seed)
            yield training.model.eval().to(device), training.after.perplexity
        finally:
            remove_adapters(training.model, training.trainable, merge=False)


def _record(
    training: Training,
    config: RecoveryConfig,
    adapter: LoraConfig | None,
    sequences: PackedSequences,
    processes: PartialState,
    teacher: PreTrainedModel | None,
    teacher_perplexity: float | None,
) -> dict[str, Any]:
    """Returns the record of a recovery, as JSON can hold it."""
    settings = {key: value for key, value in config.to_dict().items() if key != "dataset"}
    if adapter:
        settings["lora_dropout"] = adapter.lora_dropout  # A model with experts is trained without dropout.
    return {
        "source": sequences.source,
        "sequences": len(sequences.train),
        "tokens": sum(len(sequence["input_ids"]) for sequence in sequences.train),
        "steps": training.steps,
        "best_step": training.best_step,
        "held_out_sequences": len(sequences.held_out),
        "held_out_losses": {"before": training.before.losses, "after": training.after.losses},
        "perplexity_before": training.before.perplexity,
        "perplexity_after": training.after.perplexity,
        "adapter_scale": training.scale,
        "teacher": teacher and public_name(teacher.name_or_path),
        "teacher_perplexity": teacher_perplexity,
        "seconds": round(training.seconds, 1),
        "processes": processes.num_processes,
        "settings": settings,
    }
