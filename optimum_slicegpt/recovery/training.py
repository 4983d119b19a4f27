"""Trains a model, or adapters on it, from start to end, and keeps the best weights."""

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from .adapters import remove_adapters
from .configuration import RecoveryConfig
from .packing import PackedSequences
from .resuming import last_checkpoint
from .trainer import RecoveryTrainer


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Training:
    """
    Result of [`train`].

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model with the best weights, its adapters apart.
        trainable (`list[torch.nn.Parameter]`): parameters that were trainable before adapters were put on the model.
        steps (`int`), best_step (`int`): number of steps, and the step with the lowest held-out loss.
        loss_before (`float`), loss_after (`float`): held-out loss before the first step and at the best one, in nats.
        seconds (`float`): time that it took.
    """

    model: PreTrainedModel | PeftModel
    trainable: list[torch.nn.Parameter]
    steps: int
    best_step: int
    loss_before: float
    loss_after: float
    seconds: float


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
        seconds = run_trainer(trainer, last_checkpoint(folder) if resume else None)
        before, after = held_out_losses(trainer.state)
    except BaseException:
        if adapter:
            remove_adapters(trained, trainable, merge=False)
        raise
    finally:
        remove_autocast(trained)
    steps, best_step = trainer.state.global_step, trainer.state.best_global_step
    return Training(trained, trainable, steps, best_step, before, after, seconds)


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


def held_out_losses(state: TrainerState) -> tuple[float, float]:
    """
    Reads the mean held-out losses of a training, in nats. Warns if the loss did not fall.

    Args:
        state (`TrainerState`): at the end of training.

    Returns:
        `tuple`: the loss before the first step, and that of the best checkpoint.

    Raises:
        ValueError: a loss is not finite.
    """
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


def remove_autocast(model: torch.nn.Module) -> None:
    """Removes the `forward` with autocast that accelerate has set on a model, so that its class's own is used."""
    for name in ("forward", "_original_forward"):
        vars(model).pop(name, None)


@contextmanager
def restored(model: PreTrainedModel) -> Iterator[None]:
    """Restores a model's device, training mode and `use_cache`, which training changes besides its weights."""
    device, training, use_cache = model.device, model.training, model.config.use_cache
    try:
        yield
    finally:
        model.config.use_cache = use_cache
        model.train(training).to(device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds every random number generator during a computation, and restores them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
