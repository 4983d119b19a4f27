"""Perplexity of a language model on fixed token batches."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .assembly import evaluating
from .calibration import TokenBatches, load_batches


_POSITIONS = 256  # whose logits are in float32 at a time


@dataclass(frozen=True)
class Perplexity:
    """
    Result of `evaluate_perplexity`.

    Args:
        perplexity (`float`): exp of `nll`.
        nll (`float`): Mean next-token loss, in nats per prediction.
        stderr (`float`): Standard error of `nll` over sequences. NaN where there is one sequence.
        ntokens (`int`): Number of predictions: a sequence of T tokens has T - 1.
    """

    perplexity: float
    nll: float
    stderr: float
    ntokens: int


@torch.inference_mode()
def evaluate_perplexity(
    model: PreTrainedModel,
    batches: TokenBatches | list[dict[str, Tensor]],
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Perplexity:
    """
    Perplexity over all predictions, each sequence on its own. Masked tokens are left out of the sequence.

    Args:
        model (`PreTrainedModel`):
            A causal language model. Evaluated in eval mode; its training mode is restored.
        batches (`TokenBatches` or `list[dict]`):
            What `load_batches` returns, or takes as tokenised batches.
        device (`torch.device` or `str`, *optional*):
            Where to move the model. By default it stays where it is.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `Perplexity`: loss per token in float32, sums in float64.

    Raises:
        ValueError: malformed batches, token ids outside the vocabulary, or no sequence of at least 2 tokens.
    """
    batches = load_batches(batches, vocab_size=model.get_input_embeddings().weight.shape[0])
    if device is not None:
        model.to(device)
    # A sequence at a time: no padding to get right in every family, and logits of a whole batch can be gigabytes.
    sequences = [sequence for batch in batches for sequence in _sequences(batch) if len(sequence) > 1]
    if not sequences:
        raise ValueError("Nothing to predict: no sequence has 2 unmasked tokens. Give longer sequences.")

    with evaluating(model):
        sums = [
            _sum_of_losses(model, sequence)
            for sequence in logging.tqdm(sequences, desc="Perplexity", disable=not progress)
        ]
    losses = torch.tensor(sums, dtype=torch.float64)
    counts = torch.tensor([len(sequence) - 1 for sequence in sequences], dtype=torch.float64)
    nll = losses.sum() / counts.sum()
    # of a ratio of two sums; for sequences of one length, the deviation of their means over √n
    n = len(sequences)
    deviation = (losses - nll * counts).square().sum().sqrt() / counts.sum()
    stderr = deviation.item() * math.sqrt(n / (n - 1)) if n > 1 else math.nan
    return Perplexity(perplexity=nll.exp().item(), nll=nll.item(), stderr=stderr, ntokens=int(counts.sum()))


def _sequences(batch: dict[str, Tensor]) -> list[Tensor]:
    masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return [input_ids[mask] for input_ids, mask in zip(batch["input_ids"], masks, strict=True)]


def _sum_of_losses(model: PreTrainedModel, sequence: Tensor) -> float:
    logits = model(input_ids=sequence[None].to(model.device), use_cache=False).logits[0, :-1]
    targets = sequence[1:].to(logits.device)
    return sum(
        F.cross_entropy(some.float(), target, reduction="none").double().sum().item()
        for some, target in zip(logits.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
    )
