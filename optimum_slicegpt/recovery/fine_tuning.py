"""[`recover`]: everything around the training itself."""

import math
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from ..assembly import evaluating
from ..calibration import load_batches, within_positions
from ..model_card import public_name
from ..modeling.families import family_of
from ..processes import joined
from .adapters import lora_config
from .checkpoints import (
    TEACHER,
    check_checkpoints,
    checkpoint_folder,
    data_fingerprint,
    last_checkpoint,
    model_fingerprint,
)
from .configuration import LORA_RATE, RecoveryConfig
from .distillation import find_teacher
from .packing import PackedSequences, load_sequences
from .training import RecoveryTrainer, on_cpu


logger = logging.get_logger(__name__)


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
    Fine-tunes a sliced model in place, by PEFT and `Trainer`, and keeps what is best on held-out sequences.

    Runs in as many processes as `accelerate launch` starts; each of them gets the result. Everything that can be
    refused is refused before anything changes. With adapters, a run that is cut off leaves the model as it was.

    To go on with a run that was cut off, give it a folder for `checkpoints`, and call this again with the same
    arguments and `resume=True`. The last whole checkpoint there has weights, optimizer, schedule, data order and
    random states, so the outcome is that of an undisturbed run.

    Args:
        model (`PreTrainedModel`): a sliced causal language model.
        tokenizer (`str` or tokenizer, *optional*): the object, its name or its path. By default `model.name_or_path`.
        config ([`RecoveryConfig`], *optional*): how.
        teacher (`PreTrainedModel` or `str`, *optional*):
            With `config.distill`, the dense model. One that is loaded computes where and as it is; it may sit on the
            CPU in bfloat16. By default, the model on the Hub from which this one was sliced. It is left as it is.
        checkpoints (`str` or `os.PathLike`, *optional*):
            Folder for the best checkpoint and the last one. They stay there. By default a temporary one.
        resume (`bool`, defaults to `False`): go on with the run in `checkpoints`, or, if it had no whole checkpoint
            yet, begin it again.

    Returns:
        `PreTrainedModel`: `model` itself, adapters merged; or with `config.keep_adapter` a `PeftModel` around it.
        What was done is in `config.slicegpt["recovery"]` of the model.

    Raises:
        OSError: the data, the tokenizer or the teacher are not there.
        ValueError: the model, the data, the teacher or the checkpoints cannot be used; the loss became infinite.
    """
    config = config or RecoveryConfig()
    checkpoints = None if checkpoints is None else Path(checkpoints)
    check_recoverable(model, config)
    adapter = None if config.full else lora_config(model, config)
    processes = joined(cpu=on_cpu(config))
    with processes.main_process_first():  # which may download
        sequences = load_sequences(
            config.dataset,
            tokenizer or model.name_or_path,
            nsamples=config.nsamples,
            seqlen=within_positions(config.seqlen, model.config),
            held_out=config.held_out,
            seed=config.seed,
            text_column=config.text_column,
            mask_prompts=config.mask_prompts,
        )
    load_batches(sequences.train + sequences.held_out, vocab_size=model.config.vocab_size)
    made_with = config.to_dict() | {"dataset": sequences.source, "data": data_fingerprint(sequences)}
    made_with["processes"] = processes.num_processes
    teacher = find_teacher(teacher, model, config, processes.device)
    made_with |= {"model": model_fingerprint(model), "teacher": teacher and model_fingerprint(teacher)}
    check_checkpoints(checkpoints, made_with, resume)
    learning = _for_teachers(config)
    teacher_adapter = lora_config(check_without_adapters(teacher, "teacher"), learning) if learning else None

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with (
        _seeded(config.seed, processes.device),
        _as_it_was(model),
        checkpoint_folder(checkpoints, processes, None if resume else made_with) as folder,
        evaluating(teacher) if teacher else nullcontext(),
        _adapted(teacher, teacher_adapter, learning, folder / TEACHER, sequences, resume) as (guide, guide_perplexity),
    ):
        trained = get_peft_model(model, adapter) if adapter else model
        try:
            trainer = RecoveryTrainer(trained, config, folder, sequences, guide)
            seconds = _train(trainer, last_checkpoint(folder) if resume else None)
            before, after = _held_out_losses(trainer.state)
        except BaseException:
            if adapter:
                _without_adapters(trained, trainable, merge=False)
            raise
        finally:
            _without_autocast(trained)
        processes.wait_for_everyone()  # before the folder goes
        if adapter and not config.keep_adapter:
            trained = _without_adapters(trained, trainable, merge=True)
    settings = {key: value for key, value in config.to_dict().items() if key != "dataset"}
    if adapter:
        settings["lora_dropout"] = adapter.lora_dropout  # experts have none
    record = {
        "source": sequences.source,
        "sequences": len(sequences.train),
        "tokens": sum(len(sequence["input_ids"]) for sequence in sequences.train),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "held_out_sequences": len(sequences.held_out),
        "perplexity_before": math.exp(before),
        "perplexity_after": math.exp(after),
        "teacher": teacher and public_name(teacher.name_or_path),
        "teacher_perplexity": guide_perplexity,
        "seconds": round(seconds, 1),
        "processes": processes.num_processes,
        "settings": settings,
    }
    model.config.slicegpt = (model.config.slicegpt or {}) | {"recovery": record}
    return trained.eval()


def check_recoverable(model: PreTrainedModel, config: RecoveryConfig) -> None:
    """
    Refuses what cannot be trained.

    Raises:
        ValueError: the model is not sliced, carries adapters already, or is to be trained whole in half precision.
    """
    if not model.config.model_type.startswith("sliced_"):
        raise ValueError(
            f"model_type={model.config.model_type!r} is not that of a sliced model, which begins with 'sliced_'; "
            "slice the model first, and export it to a stock architecture, if it is to have one, afterwards."
        )
    if not hasattr(model, family_of(model.config).head):
        raise ValueError(f"Cannot recover a {type(model).__name__}; load the checkpoint with AutoModelForCausalLM.")
    check_without_adapters(model, "model")
    if config.full and model.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"full=True with weights in {model.dtype}, in which small steps are rounded away; load the model with "
            "dtype float32. It is computed in bfloat16 nevertheless (bf16)."
        )


def _for_teachers(config: RecoveryConfig) -> RecoveryConfig | None:
    """How a teacher learns first, if it is to: always by adapters, and none where slicing has added layers."""
    if not config.adapt_teacher:
        return None
    rate = LORA_RATE if config.full else config.learning_rate
    return replace(config, full=False, shortcuts=False, learning_rate=rate)


@contextmanager
def _adapted(
    teacher: PreTrainedModel | None,
    adapter: LoraConfig | None,
    config: RecoveryConfig | None,
    folder: Path,
    sequences: PackedSequences,
    resume: bool,
) -> Iterator[tuple[PreTrainedModel | PeftModel | None, float | None]]:
    """
    The teacher and, where it learns from the same sequences first, its held-out perplexity by then. What it learns is
    in its adapter, which goes at the end.
    """
    if adapter is None:
        yield teacher, None
        return
    device, trainable = teacher.device, [each for each in teacher.parameters() if each.requires_grad]
    with _as_it_was(teacher):
        adapted = get_peft_model(teacher, adapter)
        try:
            trainer = RecoveryTrainer(adapted, config, folder, sequences)
            try:
                _train(trainer, last_checkpoint(folder) if resume else None)
            finally:
                _without_autocast(adapted)
            _, loss = _held_out_losses(trainer.state)
            set_seed(config.seed)  # what follows is the same after a run that was cut off here
            yield adapted.eval().to(device), math.exp(loss)
        finally:
            _without_adapters(adapted, trainable, merge=False)


def check_without_adapters(model: PreTrainedModel, what: str) -> PreTrainedModel:
    """
    The model itself, on which adapters can be put.

    Raises:
        ValueError: it carries some already.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError(f"The {what} carries PEFT adapters; call merge_and_unload() first, then recover.")
    return model


def _train(trainer: RecoveryTrainer, checkpoint: Path | None) -> float:
    """Trains to the end and loads the best weights; returns the seconds it took."""
    start = time.perf_counter()
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint else None
    if state and _is_over(state):
        # Cut off after its last step. `train` would take one more.
        trainer.state = state
        trainer._load_best_model()
    else:
        trainer.args.eval_on_start = checkpoint is None
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return time.perf_counter() - start


def _is_over(state: TrainerState) -> bool:
    return state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]


def _held_out_losses(state: TrainerState) -> tuple[float, float]:
    """Mean held-out losses before the first step and of the best checkpoint, in nats."""
    before = next(entry["eval_nll"] for entry in state.log_history if "eval_nll" in entry)
    after = state.best_metric
    if after is None or not math.isfinite(after + before):
        raise ValueError(
            f"The held-out loss was {before:.4f} nats before recovery and never finite afterwards. Lower "
            "learning_rate, or look at the sliced model, if it was not finite before."
        )
    if after >= before:
        logger.warning(
            f"The held-out loss did not fall, from {before:.4f} to {after:.4f} nats: train longer, on more data, or "
            "with another learning_rate."
        )
    return before, after


def _without_autocast(model: torch.nn.Module) -> None:
    """Takes away the forward with autocast around it, which accelerate has put before the class's own."""
    for name in ("forward", "_original_forward"):
        vars(model).pop(name, None)


def _without_adapters(adapted: PeftModel, trainable: list[torch.nn.Parameter], *, merge: bool) -> PreTrainedModel:
    model = adapted.merge_and_unload() if merge else adapted.unload()
    for parameter in trainable:
        parameter.requires_grad_(True)
    return model


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Puts back what training changes beside weights."""
    device, training, use_cache = model.device, model.training, model.config.use_cache
    try:
        yield
    finally:
        model.config.use_cache = use_cache
        model.train(training).to(device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds every random number generator for the time being."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
