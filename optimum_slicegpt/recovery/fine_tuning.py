"""Recovers a sliced model: checks everything, trains, puts back what training changed, and records the result."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.trainer_utils import set_seed

from ..data.batches import limit_to_positions, load_batches
from ..distributed import join_processes
from ..modeling.checks import check_sliced, check_without_adapters
from ..modeling.contexts import evaluating
from ..modeling.decoder import Decoder
from ..record import public_name
from .adapters import lora_config, remove_adapters
from .configuration import LORA_RATE, RecoveryConfig
from .packing import PackedSequences, load_sequences
from .resuming import TEACHER, check_checkpoints, checkpoint_folder, recovery_arguments
from .trainer import uses_cpu
from .training import Training, restored, seeded, train


def recover(
    model: PreTrainedModel,
    tokenizer: Any = None,
    config: RecoveryConfig | None = None,
    *,
    teacher: PreTrainedModel | str | None = None,
    checkpoints: str | os.PathLike | None = None,
    resume: bool = False,
) -> PreTrainedModel | PeftModel:
    """
    Fine-tunes a sliced model in place, by PEFT and `Trainer`, and keeps the weights that are best on held-out
    sequences.

    Runs in as many processes as `accelerate launch` starts; each of them has the result. All checks run before
    anything changes. With adapters, an interrupted run leaves the model as it was.

    To be able to resume, pass `checkpoints`. After an interruption, call this again with the same arguments and
    `resume=True`. The last complete checkpoint there has weights, optimizer, schedule, data order and random states,
    so the result is that of a run without interruption.

    Args:
        model (`PreTrainedModel`): a sliced causal language model.
        tokenizer (`str` or tokenizer, *optional*): the object, its name or its path. By default `model.name_or_path`.
        config ([`RecoveryConfig`], *optional*): the settings. By default `RecoveryConfig()`.
        teacher (`PreTrainedModel` or `str`, *optional*):
            With `config.distill`, the dense model. A loaded one keeps its device and dtype; it may be on the CPU in
            bfloat16. By default, the model on the Hub from which this one was sliced. It is left as it is.
        checkpoints (`str` or `os.PathLike`, *optional*):
            Folder for the best checkpoint and the last one. They stay there. By default a temporary folder.
        resume (`bool`, defaults to `False`):
            Continue the run in `checkpoints`, or start it again if it has no complete checkpoint yet.

    Returns:
        `PreTrainedModel`: `model` itself, adapters merged; or with `config.keep_adapter` a `PeftModel` around it.
        The record of the recovery is in `config.slicegpt["recovery"]` of the model.

    Raises:
        OSError: the data, the tokenizer or the teacher are not there.
        ValueError: the model, the data, the teacher or the checkpoints cannot be used; the loss became infinite.
    """
    config = config or RecoveryConfig()
    folder = None if checkpoints is None else Path(checkpoints)
    check_recoverable(model, config)
    adapter = None if config.full else lora_config(model, config)
    processes = join_processes(cpu=uses_cpu(config))
    sequences = _load_data(model, tokenizer, config, processes)
    teacher = find_teacher(teacher, model, config, processes.device)
    arguments = recovery_arguments(config, sequences, model, teacher, processes)
    check_checkpoints(folder, arguments, resume)
    teacher_adapter = _teacher_adapter(teacher, config) if config.adapt_teacher else None

    with (
        seeded(config.seed, processes.device),
        restored(model),
        checkpoint_folder(folder, processes, None if resume else arguments) as folder,
        _adapted_teacher(teacher, teacher_adapter, config, folder / TEACHER, sequences, resume) as (guide, perplexity),
    ):
        training = train(model, adapter, config, folder, sequences, guide, resume=resume)
        processes.wait_for_everyone()  # The folder may be a temporary one, which is deleted next.
        recovered = training.model
        if adapter and not config.keep_adapter:
            recovered = remove_adapters(recovered, training.trainable, merge=True)

    record = _record(training, config, adapter, sequences, processes, teacher, perplexity)
    model.config.slicegpt = (model.config.slicegpt or {}) | {"recovery": record}
    return recovered.eval()


# Before training: checks, data and the teacher


def check_recoverable(model: PreTrainedModel, config: RecoveryConfig) -> None:
    """
    Checks that a model can be recovered.

    Args:
        model (`PreTrainedModel`): any model.
        config ([`RecoveryConfig`]): the settings.

    Raises:
        ValueError: the model is not sliced or has no language model's head; it carries adapters; it is in half
            precision, and all parameters are to be trained.
    """
    check_sliced(model, "slice the model first")
    if not hasattr(model, Decoder(model).head_name):
        raise ValueError(f"Cannot recover a {type(model).__name__}; load the checkpoint with AutoModelForCausalLM.")
    check_without_adapters(model, "The model", "recover")
    if config.full and model.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"full=True with weights in {model.dtype}, in which small steps are rounded away; load the model with "
            "dtype float32. It is computed in bfloat16 nevertheless (bf16)."
        )


def _load_data(
    model: PreTrainedModel, tokenizer: Any, config: RecoveryConfig, processes: PartialState
) -> PackedSequences:
    with processes.main_process_first():  # One process downloads, the others find the files in its cache.
        sequences = load_sequences(
            config.dataset,
            tokenizer or model.name_or_path,
            nsamples=config.nsamples,
            seqlen=limit_to_positions(config.seqlen, model.config),
            held_out=config.held_out,
            seed=config.seed,
            text_column=config.text_column,
            mask_prompts=config.mask_prompts,
        )
    # This also checks the token ids.
    load_batches(sequences.train + sequences.held_out, vocab_size=model.config.vocab_size)
    return sequences


def find_teacher(
    teacher: PreTrainedModel | str | None, student: PreTrainedModel, config: RecoveryConfig, device: torch.device
) -> PreTrainedModel | None:
    """
    Finds the teacher, and loads it if it is given by name. Its vocabulary is checked before any weights are read.

    Args:
        teacher (`PreTrainedModel` or `str`, *optional*):
            The model, its name or its path. By default the model on the Hub from which the student was sliced.
        student (`PreTrainedModel`): a sliced model.
        config ([`RecoveryConfig`]): whether to distill; dtype and device of a teacher that is loaded here.
        device (`torch.device`): device of a teacher that is loaded here, unless `config` names one.

    Returns:
        `PreTrainedModel` or `None`: the teacher, or none without `config.distill`.

    Raises:
        OSError: there is no such model.
        ValueError: `config.distill` needs a teacher and none is known; a teacher is given without `config.distill`; it
            has another vocabulary.
    """
    if not config.distill:
        if teacher is not None:
            raise ValueError("A teacher is given and distill=False; set distill=True, or leave the teacher out.")
        return None
    if teacher is None:
        teacher = public_name((student.config.slicegpt or {}).get("base_model") or "")
        if "/" not in teacher:
            raise ValueError(
                "distill=True needs a teacher, and the model does not say which one on the Hub it was sliced from. "
                "Give the dense model, its name or its path."
            )
    is_name = isinstance(teacher, str)
    teacher_config = AutoConfig.from_pretrained(teacher) if is_name else teacher.config
    if teacher_config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"The teacher has a vocabulary of {teacher_config.vocab_size:,} tokens and the model one of "
            f"{student.config.vocab_size:,}; only with the same one can they be compared. Give the dense model from "
            "which this one was sliced."
        )
    if not is_name:
        return teacher
    loaded = AutoModelForCausalLM.from_pretrained(teacher, dtype=getattr(torch, config.teacher_dtype))
    return loaded.to(config.teacher_device or device)


def _teacher_config(config: RecoveryConfig) -> RecoveryConfig:
    """Returns the settings to adapt a teacher with: always by adapters, and none on layers that slicing adds."""
    rate = LORA_RATE if config.full else config.learning_rate
    return replace(config, full=False, shortcuts=False, learning_rate=rate)


def _teacher_adapter(teacher: PreTrainedModel, config: RecoveryConfig) -> LoraConfig:
    check_without_adapters(teacher, "The teacher", "recover")
    return lora_config(teacher, _teacher_config(config))


# Training


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
    with evaluating(teacher) if teacher else nullcontext(), restored(teacher) if adapter else nullcontext():
        if adapter is None:
            yield teacher, None
            return
        device = teacher.device
        training = train(teacher, adapter, _teacher_config(config), folder, sequences, resume=resume)
        try:
            # A resumed run may skip this training, and must draw the same random numbers for the student.
            set_seed(config.seed)
            yield training.model.eval().to(device), math.exp(training.loss_after)
        finally:
            remove_adapters(training.model, training.trainable, merge=False)


# After training


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
        "perplexity_before": math.exp(training.loss_before),
        "perplexity_after": math.exp(training.loss_after),
        "teacher": teacher and public_name(teacher.name_or_path),
        "teacher_perplexity": teacher_perplexity,
        "seconds": round(training.seconds, 1),
        "processes": processes.num_processes,
        "settings": settings,
    }
