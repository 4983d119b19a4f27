"""Extends `Trainer` for recovery: it learns from a teacher, measures held-out losses, and shows its progress."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ..evaluation.losses import UNLABELLED
from .configuration import RecoveryConfig
from .distillation import distillation_loss
from .packing import PackedSequences


logger = logging.get_logger(__name__)

OTHER_OUTPUTS = ["aux_loss", "past_key_values", "hidden_states", "attentions", "router_logits"]
"""Outputs of causal language models besides loss and logits."""


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
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="nll",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        bf16=config.bf16,
        use_cpu=use_cpu,
        dataloader_pin_memory=not use_cpu,
        ddp_find_unused_parameters=False,
        seed=config.seed,
        data_seed=config.seed,
        label_names=["labels"],
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )


def uses_cpu(config: RecoveryConfig) -> bool:
    """Tells whether training runs on the CPU, by choice or for lack of an accelerator."""
    return config.use_cpu or not torch.accelerator.is_available()


class RecoveryTrainer(Trainer):
    """
    A `Trainer` that measures the mean loss per label on held-out sequences (`eval_nll`, in nats, and
    `eval_perplexity`), and learns from a teacher if there is one.

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
            compute_metrics=mean_loss,
            preprocess_logits_for_metrics=sum_losses,
            callbacks=[Progress()] + [EarlyStoppingCallback(config.patience)] * bool(config.patience),
        )
        self.remove_callback(PrinterCallback)
        self.teacher, self.temperature, self.distill_weight = teacher, config.temperature, config.distill_weight

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=OTHER_OUTPUTS)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # The held-out loss is the same with a teacher and without: that of the labels.
        if self.teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels, input_ids = inputs["labels"], inputs["input_ids"]
        with torch.no_grad():
            teacher_logits = self.teacher(input_ids=input_ids.to(self.teacher.device), use_cache=False).logits
        logits = model(input_ids=input_ids).logits
        loss = distillation_loss(
            logits, teacher_logits, labels, temperature=self.temperature, weight=self.distill_weight
        )
        # The base class takes the mean over all processes' labels, too: gradients are averaged over processes later.
        return loss / num_items_in_batch * self.accelerator.num_processes


def sum_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """
    Sums the next-token losses of each sequence, and counts its labels.

    Args:
        logits (`torch.Tensor` of shape `(B, T, V)`), labels (`torch.Tensor` of shape `(B, T)`): not shifted.

    Returns:
        `torch.Tensor` of shape `(B, 2)`, float32: sum and number.
    """
    rows = [
        (
            F.cross_entropy(row.float(), targets, ignore_index=UNLABELLED, reduction="sum"),
            (targets != UNLABELLED).sum(),
        )
        for row, targets in zip(logits[:, :-1], labels[:, 1:], strict=True)
    ]
    return torch.stack([torch.stack([loss, count.float()]) for loss, count in rows])


def mean_loss(prediction) -> dict[str, float]:
    """Computes the mean loss per label and its exponential from [`sum_losses`] of all sequences."""
    loss, count = prediction.predictions.astype(np.float64).sum(0)
    return {"nll": loss / count, "perplexity": np.exp(loss / count)}


class Progress(TrainerCallback):
    """A progress bar over the steps with the losses, in the first process, and on a terminal only."""

    def on_train_begin(self, args, state, control, **kwargs):
        disable = None if state.is_world_process_zero else True  # None hides the bar where there is no terminal.
        self.bar = logging.tqdm(total=state.max_steps, initial=state.global_step, desc="Recovering", disable=disable)
        self.losses = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)

    def on_log(self, args, state, control, logs, **kwargs):
        titles = {"loss": "loss", "eval_perplexity": "held-out perplexity"}
        self.losses |= {title: f"{logs[name]:.4g}" for name, title in titles.items() if name in logs}
        self.bar.set_postfix(self.losses)
        if state.is_world_process_zero:
            logger.info(f"step {state.global_step} of {state.max_steps}: {logs}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
