"""Perplexity of a language model on fixed tokens, in separate chunks or in windows that overlap."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
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
        stderr (`float`): Standard error of `nll` over sequences, or over windows. NaN where there is one.
        ntokens (`int`): Number of predictions: a sequence of T tokens has T - 1.
    """

    perplexity: float
    nll: float
    stderr: float
    ntokens: int


@dataclass(frozen=True)
class Difference:
    """
    How much worse a model predicts than another, on the same tokens.

    Args:
        nll (`float`): Mean next-token loss less that of the other, in nats: the logarithm of `perplexity_ratio`.
        stderr (`float`):
            Standard error of `nll`. Paired: what makes a sequence hard for both cancels, so this is far smaller than
            what their own standard errors would give. NaN where there is one sequence.
        perplexity_ratio (`float`): Perplexity over that of the other.
    """

    nll: float
    stderr: float
    perplexity_ratio: float


@dataclass(frozen=True, eq=False)
class Losses:
    """
    Next-token losses of a model: what its perplexity is computed from, and what sets two models side by side.

    Args:
        sums (`torch.Tensor` of shape `(N,)`, float64): Sum over each sequence, or window, in nats.
        counts (`torch.Tensor` of shape `(N,)`, float64): Predictions in each.
    """

    sums: Tensor
    counts: Tensor

    def perplexity(self) -> Perplexity:
        """Over all predictions, each of them counting alike."""
        nll, stderr = _mean(self.sums, self.counts)
        return Perplexity(perplexity=nll.exp().item(), nll=nll.item(), stderr=stderr, ntokens=int(self.counts.sum()))

    def difference(self, other: "Losses") -> Difference:
        """
        How much worse these losses are than those of another model.

        Raises:
            ValueError: the other's are not of the same sequences.
        """
        if not torch.equal(self.counts, other.counts):
            sizes = (f"{len(losses.counts)} of {int(losses.counts.sum())}" for losses in (self, other))
            raise ValueError(
                f"Losses of different sequences ({' and '.join(sizes)} predictions) cannot be paired; measure both "
                "models on the same batches."
            )
        nll, stderr = _mean(self.sums - other.sums, self.counts)
        return Difference(nll=nll.item(), stderr=stderr, perplexity_ratio=nll.exp().item())


def evaluate_perplexity(
    model: PreTrainedModel,
    batches: TokenBatches | list[dict[str, Tensor]],
    *,
    seqlen: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Perplexity:
    """
    Perplexity over all predictions. Arguments and errors are those of [`evaluate_losses`].

    Returns:
        `Perplexity`: loss per token in float32, sums in float64.
    """
    return evaluate_losses(
        model, batches, seqlen=seqlen, stride=stride, batch_size=batch_size, device=device, progress=progress
    ).perplexity()


@torch.inference_mode()
def evaluate_losses(
    model: PreTrainedModel,
    batches: TokenBatches | list[dict[str, Tensor]],
    *,
    seqlen: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Losses:
    """
    Next-token losses, each sequence on its own. Masked tokens are left out of the sequence.

    Args:
        model (`PreTrainedModel`):
            A causal language model. Evaluated in eval mode; its training mode is restored.
        batches (`TokenBatches` or `list[dict]`):
            What `load_batches` returns, or takes as tokenised batches.
        seqlen (`int`, *optional*):
            Tokens in a window, with `stride`. By default each sequence is a window.
        stride (`int`, *optional*):
            With `seqlen`. A sequence is then read in windows of `seqlen` tokens, each `stride` tokens further than
            the one before. A token is predicted once, in the first window that holds it, where at least
            `seqlen - stride` tokens come before it unless the text begins there. The last window ends with the text
            and may be shorter. (Perplexity of fixed-length models, transformers documentation; here every prediction
            counts alike.)
        batch_size (`int`, defaults to 1):
            Sequences, or windows, per forward. Those of one batch are padded on the right, which nothing looks at.
            Logits of a whole batch can be gigabytes.
        device (`torch.device` or `str`, *optional*):
            Where to move the model. By default it stays where it is.
        progress (`bool`, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `Losses`: per sequence of at least 2 tokens, or per window, in order. Losses per token in float32, sums in
        float64.

    Raises:
        ValueError: a size out of its range; malformed batches, token ids outside the vocabulary, or no sequence of at
            least 2 tokens.
    """
    check_sizes(seqlen, stride, batch_size)
    batches = load_batches(batches, vocab_size=model.get_input_embeddings().weight.shape[0])
    if device is not None:
        model.to(device)
    sequences = [sequence for batch in batches for sequence in _sequences(batch) if len(sequence) > 1]
    if not sequences:
        raise ValueError("Nothing to predict: no sequence has 2 unmasked tokens. Give longer sequences.")
    windows = [window for sequence in sequences for window in _windows(sequence, seqlen, stride)]

    # Of one length together as far as can be, longest first: hardly any padding, and no late lack of memory.
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index][0]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    sums = torch.zeros(len(windows), dtype=torch.float64)
    with evaluating(model):
        for part in logging.tqdm(parts, desc="Perplexity", disable=not progress):
            sums[part] = torch.stack(_sums_of_losses(model, [windows[index] for index in part]))
    return Losses(sums, torch.tensor([count for _, count in windows], dtype=torch.float64))


def check_sizes(seqlen: int | None = None, stride: int | None = None, batch_size: int = 1) -> None:
    """Refuses what [`evaluate_losses`] would."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if (seqlen is None) != (stride is None):
        raise ValueError(
            f"seqlen={seqlen} and stride={stride}: windows need both; for sequences as they are give neither."
        )
    if stride is not None and not 1 <= stride < seqlen:
        raise ValueError(
            f"stride={stride} must be at least 1 and less than seqlen={seqlen}, so that every token has some before "
            "it; leave it out for separate chunks."
        )


def _sequences(batch: dict[str, Tensor]) -> list[Tensor]:
    masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return [input_ids[mask] for input_ids, mask in zip(batch["input_ids"], masks, strict=True)]


def _windows(sequence: Tensor, seqlen: int | None, stride: int | None) -> list[tuple[Tensor, int]]:
    """Windows, and how many of its last tokens each predicts. Without a stride the sequence is the only one."""
    windows, predicted = [], 1  # nothing comes before the first token
    for start in range(0, len(sequence), stride or len(sequence)):
        end = min(start + (seqlen or len(sequence)), len(sequence))
        windows.append((sequence[start:end], end - predicted))
        predicted = end
        if end == len(sequence):
            break
    return windows


def _sums_of_losses(model: PreTrainedModel, windows: list[tuple[Tensor, int]]) -> list[Tensor]:
    lengths = torch.tensor([len(tokens) for tokens, _ in windows])
    inputs = {"input_ids": pad_sequence([tokens for tokens, _ in windows], batch_first=True)}
    if lengths.min() < lengths.max():
        inputs["attention_mask"] = (torch.arange(lengths.max()) < lengths[:, None]).long()
    logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, use_cache=False).logits
    return [
        _sum_of_losses(row[len(tokens) - 1 - count : len(tokens) - 1], tokens[-count:])
        for row, (tokens, count) in zip(logits, windows, strict=True)
    ]


def _sum_of_losses(logits: Tensor, targets: Tensor) -> Tensor:
    parts = zip(logits.split(_POSITIONS), targets.to(logits.device).split(_POSITIONS), strict=True)
    return sum(F.cross_entropy(some.float(), target, reduction="none").double().sum().cpu() for some, target in parts)


def _mean(sums: Tensor, counts: Tensor) -> tuple[Tensor, float]:
    """Mean over predictions, and its standard error over sequences."""
    mean = sums.sum() / counts.sum()
    # of a ratio of two sums; for sequences of one length, the deviation of their means over √n
    n = len(sums)
    deviation = (sums - mean * counts).square().sum().sqrt() / counts.sum()
    return mean, deviation.item() * math.sqrt(n / (n - 1)) if n > 1 else math.nan
