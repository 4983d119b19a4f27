"""Trains a model, or adapters on it, from start to end, and keeps the best weights."""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from .adapters import remove_adapters
from .configuration import RecoveryConfig
from .resuming import last_checkpoint
from .trainer import HeldOut, RecoveryTrainer


if TYPE_CHECKING:
    from .packing import PackedSequences


logger = logging.get_logger(__name__)

SCALES = (0.25, 0.5, 0.75)
"""Shares of trained adapters that are tried beside none and all of them."""


@dataclass(frozen=True)
class Training:
    """
    Result of [`train`].

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model with the best weights, its adapters apart.
        trainable (`list[torch.nn.Parameter]`): parameters that were trainable before adapters were put on the model.
        steps (`int`), best_step (`int`): number of steps, and the step with the lowest held-out loss.
        before ([`HeldOut`]), after ([`HeldOut`]): held-out losses before the first step, and with the best weights.
        scale (`float`, *optional*): of the adapters, see [`choose_scale`].
        seconds (`float`): time that it took.
    """

    model: PreTrainedModel | PeftModel
    trainable: list[torch.nn.Parameter]
    steps: int
    best_step: int
    before: HeldOut
    after: HeldOut
    scale: float | None
    seconds: float


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Hides warnings about how transformers' Trainer and PEFT call their own code, which nobody here can act on."""
    trainer = logging.get_logger("transformers.trainer_utils")
    level = trainer.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer.setLevel(logging.ERROR)
        try:
            yield
        finally:
            trainer.setLevel(level)


@silent_libraries()
def train(
    model: PreTrainedModel,
    adapter: LoraConfig | None,
    config: RecoveryConfig,
    folder: Path,
    sequences: PackedSequences,
    teacher: PreTrainedModel | PeftModel | None = None,
    *,
    resume: bool,
) -> Training:
    """
    Trains a model, or adapters on it, and keeps the best weights. If that fails, the adapters are removed.

    Args:
        model (`PreTrainedModel`): the model to train.
        adapter (`LoraConfig`, *optional*): adapters to train. By default all parameters are trained.
        config ([`RecoveryConfig`]): the settings.
        folder (`Path`): folder of checkpoints.
        sequences ([`PackedSequences`]): the data.
        teacher (`PreTrainedModel` or `PeftModel`, *optional*): in evaluation mode.
        resume (`bool`): whether to continue from the last checkpoint in the folder.

    Raises:
        ValueError: a held-out loss is not finite.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained = get_peft_model(model, adapter) if adapter else model
    try:
        trainer = RecoveryTrainer(trained, config, folder, sequences, teacher)
        if not trainer.bf16:
            widen(trained)
        seconds = run_trainer(trainer, last_checkpoint(folder) if resume else None)
        before, after = held_out_losses(trainer.state)
        scale, chosen = choose_scale(trainer, before, after) if adapter else (None, after)
        if chosen.mean >= before.mean:
            logger.warning(
                f"The held-out loss did not fall, from {before.mean:.4f} to {after.mean:.4f} nats: train longer, on "
                "more data, or with another learning_rate."
            )
    except BaseException:
        if adapter:
            remove_adapters(trained, trainable, merge=False)
        raise
    finally:
        remove_autocast(trained)
    steps, best_step = trainer.state.global_step, trainer.state.best_global_step
    return Training(trained, trainable, steps, best_step, before, chosen, scale, seconds)


def run_trainer(trainer: RecoveryTrainer, checkpoint: Path | None) -> float:
    """
    Trains to the end, and loads the best weights.

    Args:
        trainer ([`RecoveryTrainer`]): its model is trained.
        checkpoint (`Path`, *optional*): checkpoint to continue from. By default training starts.

    Returns:
        `float`: the seconds that it took.
    """
    start = time.perf_counter()
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint else None
    if state and is_finished(state):
        # The run was interrupted after its last step. `Trainer.train` would add another step.
        trainer.state = state
        trainer._load_best_model()
    else:
        trainer.args.eval_on_start = checkpoint is None
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return time.perf_counter() - start


def is_finished(state: TrainerState) -> bool:
    """Tells whether training had ended, by its last step or early."""
    return state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]


def held_out_losses(state: TrainerState) -> tuple[HeldOut, HeldOut]:
    """
    Reads the held-out losses of a training.

    Args:
        state (`TrainerState`): at the end of training.

    Returns:
        `tuple`: those before the first step, and those of the best checkpoint.

    Raises:
        ValueError: a loss is not finite.
    """
    evaluations = [entry for entry in state.log_history if "eval_held_out" in entry]
    before, best = HeldOut.from_metrics(evaluations[0]), state.best_metric
    if best is None or not math.isfinite(best + before.mean):
        raise ValueError(
            f"The held-out loss was {before.mean:.4f} nats before recovery and never finite afterwards. Lower "
            "learning_rate, or look at the sliced model, if it was not finite before."
        )
    after = next(entry for entry in evaluations[1:] if entry["step"] == state.best_global_step)
    return before, HeldOut.from_metrics(after)


@torch.no_grad()
def choose_scale(trainer: RecoveryTrainer, before: HeldOut, after: HeldOut) -> tuple[float, HeldOut]:
    """
    Chooses by how much to multiply the adapters of a trained model, for the mean of the held-out losses, and does so.
    No kind of text becomes worse unless the mean gains, and a training in vain leaves the model as it was.

    Args:
        trainer ([`RecoveryTrainer`]): its model has the best weights.
        before ([`HeldOut`]), after ([`HeldOut`]): losses without the adapters and with them.

    Returns:
        `tuple`: one of `SCALES`, 0 or 1, and the losses with it.
    """
    weights = [weight for name, weight in trainer.model.named_parameters() if "lora_B" in name]
    trained = [weight.clone() for weight in weights]

    def set_scale(scale):
        for weight, value in zip(weights, trained, strict=True):
            weight.copy_(scale * value)

    found = {0.0: before, 1.0: after}
    for scale in SCALES:
        set_scale(scale)
        found[scale] = trainer.measure()
    best = min(found, key=lambda scale: found[scale].mean)
    set_scale(best)
    return best, found[best]


def remove_autocast(model: torch.nn.Module) -> None:
    """Removes the `forward` with autocast that accelerate has set on a model, so that its class's own is used."""
    for name in ("forward", "_original_forward"):
        vars(model).pop(name, None)


@contextmanager
def restored(model: PreTrainedModel) -> Iterator[None]:
    """Restores a model's device, dtypes, training mode and `use_cache`, which training changes besides its weights."""
    device, training, use_cache = model.device, model.training, model.config.use_cache
    try:
        with dtypes_restored(model):
            yield
    finally:
        model.config.use_cache = use_cache
        model.train(training).to(device)


@contextmanager
def dtypes_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restores the dtype of every parameter that a model has now."""
    dtypes = {parameter: parameter.dtype for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, dtype in dtypes.items():
            parameter.data = parameter.data.to(dtype)


def widen(model: torch.nn.Module) -> None:
    """Converts the parameters of a model that are in half precision to float32."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every random number generator during a computation, those of all GPUs included, and restores them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
