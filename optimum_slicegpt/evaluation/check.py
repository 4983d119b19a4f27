"""Compares a sliced model with its dense model on text that the run did not see, and lets both answer two prompts."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from ..configuration import SliceGPTConfig
from ..data.batches import TokenBatches, begun, find_tokenizer
from ..data.beginnings import begun_once
from ..data.calibration import HELD_OUT, held_out_batches
from ..data.generated import OWN_TOKENS
from ..modeling.contexts import choose_dtype, computing_on
from ..modeling.families import begin_tokens
from ..progress import announce
from .perplexity import Losses, evaluate_losses


logger = logging.get_logger(__name__)

PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.")
ANSWER_TOKENS = 24
WINDOW = 512
"""Most tokens of a sequence that is measured: standard errors are over sequences."""
MUCH = 0.5
"""Nats per token, on the mean of the kinds of text, from which on a loss is a warning."""

ERROR, OF_LIMIT = 0.01, 0.1
"""
Standard error of the mean over the kinds of text with which a loss is known well enough for a limit: in nats, or as a
share of the limit where that is more.
"""
SPREAD = 16
"""
Standard error of what is lost on one kind of text, as a multiple of the loss and of 1 / √tokens. On WikiText-2 and its
own text SmolLM2 has 12 where it lost 0.3 nats, and 16 where it lost 0.1.
"""


@dataclass(frozen=True)
class KindOfText:
    """
    What a model lost on one kind of text.

    Args:
        tokens (`int`): predictions.
        dense (`float`), sliced (`float`): mean loss of either model, in nats per token.
        loss (`float`), stderr (`float`): the difference, and its standard error, paired by sequence.
    """

    tokens: int
    dense: float
    sliced: float
    loss: float
    stderr: float | None


class Check:
    """
    A comparison of a dense model with what becomes of it. The dense model is measured when this is built, which takes
    one forward over the tokens; those that the model writes itself are written first.

    Args:
        dense (`PreTrainedModel`): not sliced yet.
        config ([`SliceGPTConfig`]), tokenizer (`str` or tokenizer, *optional*): those of the run.
        tokens (`int`): about how many of each kind of text.

    Attributes:
        has_texts (`bool`): whether there is any text to measure on.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: see [`held_out_batches`].
    """

    def __init__(self, dense: PreTrainedModel, config: SliceGPTConfig, tokenizer: Any = None, tokens: int = HELD_OUT):
        self._device = config.device
        self._texts = held_out_batches(dense, config, tokenizer, tokens)
        self.has_texts = bool(self._texts)
        try:
            self._tokenizer = find_tokenizer(tokenizer or config.tokenizer or dense.name_or_path)
        except ValueError:  # Tokens need none.
            self._tokenizer = None
        announce("Checking the dense model")
        self._losses, self._answers = self._measure(dense)

    def _measure(self, model: PreTrainedModel) -> tuple[list[Losses], list[str]]:
        begin, device = begin_tokens(model.config), torch.device(self._device or model.device)
        dtype = choose_dtype(None, model.dtype, device)
        with computing_on(model, device, None if dtype == model.dtype else dtype):
            losses = [evaluate_losses(model, _windows(text, begin), batch_size=4) for text in self._texts]
            answers = [] if self._tokenizer is None else [answer(model, self._tokenizer, prompt) for prompt in PROMPTS]
        return losses, answers

    def compare(self, sliced: PreTrainedModel) -> float | None:
        """
        Measures the sliced model, and adds what it lost to its record, as `check`.

        Args:
            sliced (`PreTrainedModel`): has its record.

        Returns:
            `float`: what it lost in nats per token, on the mean of the kinds of text; `None` if there are none.
        """
        announce("Checking the sliced model")
        losses, answers = self._measure(sliced)
        kinds = {}
        for text, dense, after in zip(self._texts, self._losses, losses, strict=True):
            found = after.difference(dense)
            figures = [dense.perplexity().nll, after.perplexity().nll, found.nll, found.stderr]
            rounded = [round(each, 4) if math.isfinite(each) else None for each in figures]
            kinds[text.source] = KindOfText(int(dense.counts.sum()), *rounded)
        known = [math.inf if each.loss is None else each.loss for each in kinds.values()]
        errors = [each.stderr for each in kinds.values() if each.stderr is not None]
        mean = sum(known) / len(known) if known else None
        sliced.config.slicegpt["check"] = {
            "loss": None if mean is None or math.isinf(mean) else round(mean, 4),
            "stderr": round(math.hypot(*errors) / len(kinds), 4) if errors and len(errors) == len(kinds) else None,
            "texts": {kind: asdict(each) for kind, each in kinds.items()},
            "answers": {
                prompt: {"dense": dense, "sliced": sliced}
                for prompt, dense, sliced in zip(PROMPTS, self._answers, answers, strict=False)  # or no answers
            },
        }
        return mean


def error_for(limit: float) -> float:
    """Returns the standard error, in nats, with which a loss is to be known that is compared with a limit."""
    return max(ERROR, OF_LIMIT * limit)


def tokens_for(limit: float) -> int:
    """
    Returns how many tokens of each of two kinds of text it takes to know a loss near a limit in nats with the error of
    [`error_for`]. There are no more than a model writes by default.

    Examples:
        >>> tokens_for(0.01), tokens_for(0.07), tokens_for(0.1), tokens_for(0.3)
        (4096, 6272, 12800, 12800)
    """
    return min(max(HELD_OUT, round((SPREAD * limit / error_for(limit)) ** 2 / 2)), OWN_TOKENS)


def judge_loss(loss: float | None, refuse_above: float | None = None) -> None:
    """
    Warns if a sliced model lost much.

    Args:
        loss (`float`, *optional*): in nats per token, as [`Check.compare`] returns it.
        refuse_above (`float`, *optional*): from where on it is too much.

    Raises:
        ValueError: it is too much.
    """
    if loss is None:
        return
    if refuse_above is not None and not loss <= refuse_above:
        raise ValueError(
            f"The sliced model loses {loss:.2f} nats per token, more than refuse_above={refuse_above}; nothing is "
            "changed or written. Delete less, calibrate on more or broader text, or recover the result."
        )
    if not loss <= MUCH:
        logger.warning(
            f"THE MODEL IS DAMAGED: it loses {loss:.2f} nats per token, {math.exp(min(loss, 99)):.1f} times the "
            "perplexity. Compare the answers. Delete less, calibrate on more or broader text, or recover it "
            "(optimum-cli slicegpt recover)."
        )


def _windows(text: TokenBatches, begin: list[int]) -> list[dict[str, torch.Tensor]]:
    """Cuts sequences, which begin as they should, into windows that do so, too."""
    return [
        {"input_ids": begun(part, begin if number else [])}
        for batch in text
        for number, part in enumerate(batch["input_ids"].split(WINDOW, dim=1))
    ]


@torch.no_grad()  # Inference mode would leave the model buffers that cannot be trained with.
def answer(model: PreTrainedModel, tokenizer: Any, prompt: str) -> str:
    """Returns the first words of a model's most probable answer, to a user's turn where a chat template takes it."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}]
        with suppress(Exception):  # A template is a program: it may raise anything.
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = begun_once(tokenizer(prompt, add_special_tokens=False)["input_ids"], begin_tokens(model.config))
    if not ids:
        return ""
    ids = torch.tensor([ids], device=model.device)
    ends = {"eos_token_id": model.generation_config.eos_token_id, "pad_token_id": 0}
    greedy = GenerationConfig(max_new_tokens=ANSWER_TOKENS, do_sample=False, **ends)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)[0, ids.shape[1] :]
    return " ".join(tokenizer.decode(found, skip_special_tokens=True).split())
