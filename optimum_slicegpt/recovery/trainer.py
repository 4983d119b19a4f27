"""Extends `Trainer` for recovery: it learns from a teacher, measures held-out losses, and shows its progress."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ..evaluation.losses import UNLABELLED
from ..modeling.contexts import multiplies
from ..progress import Progress
from .configuration import RecoveryConfig
from .distillation import chunks, cross_entropy, distillation_loss, divergence


if TYPE_CHECKING:
    from .packing import PackedSequences


logger = logging.get_logger(__name__)

LOSS = "loss on"
"""Begins the name of a held-out loss; the name of its kind of text follows."""


def training_arguments(config: RecoveryConfig, folder: Path) -> TrainingArguments:
    """
    Returns the `TrainingArguments` of a recovery. It evaluates before the first step, every `config.eval_steps`, and
    after the last step, and keeps the best checkpoint and the last one.

    Args:
        config ([`RecoveryConfig`]): the settings.
        folder (`Path`): folder of checkpoints.
    """
    use_cpu = uses_cpu(config)
    return TrainingArguments(
        str(folder),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        adam_beta2=0.98,
        warmup_steps=0.05,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="held_out",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        use_cpu=use_cpu,
        dataloader_pin_memory=not use_cpu,
        ddp_find_unused_parameters=False,
        seed=config.seed,
        data_seed=config.seed,
        label_names=["labels"],
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )


def uses_cpu(config: RecoveryConfig) -> bool:
    """Tells whether training runs on the CPU, by choice or for lack of an accelerator."""
    return config.use_cpu or not torch.accelerator.is_available()


@dataclass(frozen=True)
class HeldOut:
    """
    Losses on held-out sequences.

    Args:
        losses (`dict[str, float]`): for each kind of text the mean of what is trained, in nats.
        perplexity (`float`): exponential of the mean cross-entropy, in which every kind has the same weight.
    """

    losses: dict[str, float]
    perplexity: float

    @classmethod
    def from_metrics(cls, metrics: dict[str, float]) -> HeldOut:
        """Reads what [`mean_losses`] found from the metrics of a `Trainer`."""
        start = f"eval_{LOSS} "
        losses = {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}
        return cls(losses, metrics["eval_perplexity"])

    @property
    def mean(self) -> float:
        """The mean over all kinds, by which the best weights are chosen."""
        return sum(self.losses.values()) / len(self.losses)


class RecoveryTrainer(Trainer):
    """
    A `Trainer` that learns from a teacher if there is one, and measures on held-out sequences what it trains: the mean
    per label of every kind of text, and the mean of all kinds (`eval_held_out`, in nats).

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model to train.
        config ([`RecoveryConfig`]): the settings.
        folder (`Path`): folder of checkpoints.
        sequences ([`PackedSequences`]): the data to train and to measure on.
        teacher (`PreTrainedModel`, *optional*): in evaluation mode, on any device and in any dtype.
    """

    def __init__(self, model, config: RecoveryConfig, folder: Path, sequences: PackedSequences, teacher=None):
        super().__init__(
            model,
            training_arguments(config, folder),
            train_dataset=sequences.train,
            eval_dataset=sequences.held_out,
            compute_metrics=partial(mean_losses, kinds=sequences.kinds),
            callbacks=[ShownProgress()] + [EarlyStoppingCallback(config.patience)] * bool(config.patience),
        )
        self.remove_callback(PrinterCallback)
        self.teacher, self.temperature = teacher, config.temperature
        self.bf16 = multiplies(torch.bfloat16, self.args.device) if config.bf16 is None else config.bf16
        self.distill_weight = 0.0 if teacher is None else config.distill_weight

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        # `TrainingArguments.bf16` would turn the logits into float32, which takes longer than the rest of the head.
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=cache_enabled)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets, logits = self.teacher_logits(inputs), model(input_ids=inputs["input_ids"]).logits
        loss = distillation_loss(
            logits, targets, inputs["labels"], temperature=self.temperature, weight=self.distill_weight
        )
        # The base class takes the mean over all processes' labels, too: gradients are averaged over processes later.
        return loss / num_items_in_batch * self.accelerator.num_processes

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            targets = self.teacher_logits(inputs) if self.distill_weight else None
            logits = model(input_ids=inputs["input_ids"]).logits
        sums = sum_losses(logits, targets, inputs["labels"], self.temperature, self.distill_weight)
        return None, torch.cat([sums, inputs["kind"][:, None]], dim=1), inputs["labels"]

    @torch.no_grad()
    def teacher_logits(self, inputs) -> Tensor:
        """Computes the logits of the teacher, on its device."""
        return self.teacher(input_ids=inputs["input_ids"].to(self.teacher.device), use_cache=False).logits

    def measure(self) -> HeldOut:
        """Measures the held-out losses of the model as it is, without a trace in the state of the training."""
        return HeldOut.from_metrics(self.evaluation_loop(self.get_eval_dataloader(), "Evaluation").metrics)


def sum_losses(logits: Tensor, targets: Tensor | None, labels: Tensor, temperature: float, weight: float) -> Tensor:
    """
    Sums the losses of each sequence, and counts its labels.

    Args:
        logits (`torch.Tensor` of shape `(B, T, V)`), targets (same, *optional*): of student and teacher, not shifted.
        labels (`torch.Tensor` of shape `(B, T)`): not shifted.
        temperature (`float`), weight (`float`): see [`distillation_loss`].

    Returns:
        `torch.Tensor` of shape `(B, 3)`, float32: the sum of what is trained, that of the cross-entropy, and the
        number.
    """
    parts = [logits[:, :-1], labels[:, 1:]] + ([targets[:, :-1]] if weight else [])
    sums = 0
    for student, tokens, *teacher in chunks(*parts):
        counts = (tokens != UNLABELLED).float()
        entropy, _ = cross_entropy(student, tokens)
        trained = (1 - weight) * entropy
        if weight:
            trained = trained + weight * divergence(student, *teacher, temperature)[0]
        sums = sums + torch.stack([(each * counts).sum(1) for each in (trained, entropy, torch.ones_like(counts))], 1)
    return sums


def mean_losses(prediction, kinds: tuple[str, ...]) -> dict[str, float]:
    """
    Computes the mean losses per label of all sequences.

    Args:
        prediction (`EvalPrediction`): for each sequence what [`sum_losses`] returned, and the index of its kind.
        kinds (`tuple[str, ...]`): the names of all kinds.

    Returns:
        `dict[str, float]`: see [`HeldOut`], and `held_out`, the mean over the kinds.
    """
    *sums, index = prediction.predictions.astype(np.float64).T
    found = [[each[index == number].sum() for each in sums] for number in range(len(kinds))]
    losses = {kind: trained / count for kind, (trained, _, count) in zip(kinds, found, strict=True)}
    perplexity = np.exp(np.mean([entropy / count for _, entropy, count in found]))
    metrics = {f"{LOSS} {kind}": loss for kind, loss in losses.items()}
    return metrics | {"held_out": np.mean(list(losses.values())), "perplexity": perplexity}


class ShownProgress(TrainerCallback):
    """Shows how many steps are done, with the losses, in the first process."""

    def on_train_begin(self, args, state, control, **kwargs):
        shown = state.is_world_process_zero
        self.progress = Progress(state.max_steps, "Recovering", done=state.global_step, shown=shown)
        self.losses = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.progress.update()

    def on_log(self, args, state, control, logs, **kwargs):
        titles = {"loss": "loss", "eval_held_out": "held-out loss"}
        self.losses |= {title: f"{logs[name]:.4g}" for name, title in titles.items() if name in logs}
        self.progress.note = ", ".join(f"{title} {loss}" for title, loss in self.losses.items())
        if state.is_world_process_zero:
            logger.info(f"step {state.global_step} of {state.max_steps}: {logs}")

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.close()
