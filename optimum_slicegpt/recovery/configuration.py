"""Holds the settings of a recovery: [`RecoveryConfig`]."""

import math
from dataclasses import dataclass, fields
from typing import Any

from ..data.texts import is_generated
from ..validation import Validated, storable_dataset


LORA_RATE, FULL_RATE = 1e-3, 2e-5
"""Default learning rates of LoRA, and of all parameters."""


@dataclass
class RecoveryConfig(Validated):
    """
    Settings of [`recover`]. Validated when built. By default a sliced model learns from the dense model alone, on text
    of the dense model and on other text, half and half, every sequence of which is new.

    Args:
        dataset (defaults to `"auto"`):
            Data to train on, besides the text of the dense model. Text: `"auto"` or another name of
            `data.texts.DATASETS`, a path or list of paths to txt, json, jsonl or parquet files, or a list of strings.
            Conversations: a table, or a list of mappings, with `messages`, or with `instruction`, perhaps `input`, and
            `output` or `instances` of them. `"self"`: text of the dense model alone.
        text_column (`str`, *optional*):
            Column of a table that holds the text. By default `"text"`, or the only one of strings.
        own_tokens (`int`, *optional*):
            How many of the tokens the dense model writes. By default half of `nsamples * seqlen`, and none without
            `distill`.
        mask_prompts (`bool`, defaults to `True`):
            Whether only the answers of conversations count. With `distill` everything counts.
        nsamples (`int`, defaults to 768): number of sequences, held-out ones and those of the dense model included.
        seqlen (`int`, defaults to 512): tokens per sequence, at most as many as the model has positions.
        held_out (`int` or `float`, defaults to 0.02):
            Sequences that are not trained on: their number, or their share of all. Half of them are of the dense
            model, where it writes.
        full (`bool`, defaults to `False`): train all parameters instead of adapters.
        lora_rank (`int`, defaults to 64): rank of LoRA.
        lora_alpha (`float`, *optional*):
            LoRA's products are scaled by `lora_alpha / lora_rank`. By default the rank.
        lora_dropout (`float`, defaults to 0): dropout before LoRA. Experts are trained without dropout.
        shortcuts (`bool`, defaults to `False`):
            Put adapters on the linear layers that slicing added, too: the shortcuts of per-block rotations, and the
            projections behind a tied embedding and before its head.
        keep_adapter (`bool`, defaults to `False`):
            Leave the adapter apart from the model instead of merging it. The adapter records the folder that the model
            was loaded from, so save a model that was just sliced, and load it from there.
        learning_rate (`float`, *optional*):
            Highest learning rate: it rises to this over a twentieth of the steps, and falls by a cosine. By default
            1e-3, or 2e-5 with `full`.
        epochs (`float`, defaults to 1): passes over the sequences.
        max_steps (`int`, *optional*): number of steps, instead of `epochs`.
        batch_size (`int`, defaults to 4): sequences per process and forward.
        gradient_accumulation (`int`, defaults to 1): forwards per step.
        eval_steps (`int` or `float`, defaults to 0.2):
            Steps between two evaluations, each of which leaves a checkpoint: their number, or a share of all steps.
        patience (`int`, *optional*, defaults to 3):
            Training ends early after this many evaluations without a lower loss. `None` never ends it early.
        distill (`bool`, defaults to `True`):
            Learn from the dense model. Without it the loss is cross-entropy, which makes a specialist: a model better
            on the kind of text that it is trained on, and worse on others.
        adapt_teacher (`bool`, defaults to `False`):
            Train adapters on the dense model first, on the same sequences, and remove them afterwards. The recovery
            takes about twice as long. A teacher that does not know this kind of text holds the student back (Sreenivas
            et al., 2024, "LLM Pruning and Distillation in Practice", where it is called teacher correction).
        temperature (`float`, defaults to 1.0):
            Divides the logits of both models in the distillation loss, see [`distillation_loss`].
        distill_weight (`float`, defaults to 1):
            w of the loss `(1 - w) * cross-entropy + w * temperature² * divergence`.
        teacher_dtype (`str`, defaults to `"bfloat16"`): dtype in which to load a teacher that is given by name.
        teacher_device (`str`, *optional*): device of a teacher that is given by name. By default that of the model.
        bf16 (`bool`, *optional*):
            Compute in bfloat16 (autocast), or in float32, for which weights in half precision are converted for the
            time of the training. By default bfloat16 where the device multiplies it in its hardware: processors
            without are many times slower with it.
        use_cpu (`bool`, defaults to `False`): train on the CPU even where there is an accelerator.
        seed (`int`, defaults to 0): seeds the order of the data, the adapter's first weights, and dropout.

    Raises:
        ValueError: a value is out of its range, or two values contradict each other.
    """

    dataset: Any = "auto"
    text_column: str | None = None
    own_tokens: int | None = None
    mask_prompts: bool = True
    nsamples: int = 768
    seqlen: int = 512
    held_out: int | float = 0.02
    full: bool = False
    lora_rank: int = 64
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    shortcuts: bool = False
    keep_adapter: bool = False
    learning_rate: float | None = None
    epochs: float = 1
    max_steps: int | None = None
    batch_size: int = 4
    gradient_accumulation: int = 1
    eval_steps: int | float = 0.2
    patience: int | None = 3
    distill: bool = True
    adapt_teacher: bool = False
    temperature: float = 1.0
    distill_weight: float = 1.0
    teacher_dtype: str = "bfloat16"
    teacher_device: str | None = None
    bf16: bool | None = None
    use_cpu: bool = False
    seed: int = 0

    def __post_init__(self):
        self._require_bools("mask_prompts", "full", "shortcuts", "keep_adapter", "distill", "adapt_teacher")
        self._require_bools("use_cpu", *["bf16"] * (self.bf16 is not None))
        self._require("dataset", self.dataset is not None, "give a name, paths, texts or conversations")
        for key in ("nsamples", "seqlen", "lora_rank", "batch_size", "gradient_accumulation"):
            self._require(key, _is_count(getattr(self, key)), "give a positive integer")
        for key, default in (("max_steps", "as many as epochs says"), ("patience", "no early end")):
            value = getattr(self, key)
            self._require(key, value is None or _is_count(value), f"give a positive integer, or None for {default}")
        for key, what in (("held_out", "sequences"), ("eval_steps", "steps")):
            value = getattr(self, key)
            share = type(value) is float and 0 < value < 1
            self._require(key, share or _is_count(value), f"give a number of {what}, or a share of them in (0, 1)")
        if self.lora_alpha is None:
            self.lora_alpha = self.lora_rank
        if self.learning_rate is None:
            self.learning_rate = FULL_RATE if self.full else LORA_RATE
        for key in ("lora_alpha", "learning_rate", "epochs", "temperature"):
            self._require(key, _is_positive(getattr(self, key)), "give a positive number")
        self._require("lora_dropout", _is_share(self.lora_dropout) and self.lora_dropout < 1, "give a share in [0, 1)")
        self._require("distill_weight", _is_share(self.distill_weight), "give a share in [0, 1]")
        for key in ("seed", "own_tokens"):
            value = getattr(self, key)
            is_left_out = key == "own_tokens" and value is None
            self._require(key, is_left_out or (type(value) is int and value >= 0), "give a non-negative integer")
        if self.full and (self.keep_adapter or self.shortcuts):
            key = "keep_adapter" if self.keep_adapter else "shortcuts"
            raise ValueError(f"{key}=True with full=True, which trains everything without adapters; leave one out.")
        if self.adapt_teacher and not self.distill:
            raise ValueError("adapt_teacher=True with distill=False, which has no teacher; set distill=True.")
        if not self.distill and (self.own_tokens or is_generated(self.dataset)):
            raise ValueError("The dense model writes text only where it is the teacher; set distill=True.")
        self._require_dtype("teacher_dtype")
        self._require_device("teacher_device")

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON can hold them. Of datasets, see [`storable_dataset`]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"dataset": storable_dataset(self.dataset)}


def _is_count(value) -> bool:
    return type(value) is int and value > 0


def _is_positive(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_share(value) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1
