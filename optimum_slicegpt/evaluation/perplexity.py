"""Measures the perplexity of a language model on fixed tokens, in separate chunks or in windows that overlap."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..data.batches import TokenBatches, load_batches
from ..modeling.contexts import computing_on, evaluating
from ..progress import track
from .losses import sum_over_positions


@dataclass(frozen=True)
class Perplexity:
    """
    Result of [`evaluate_perplexity`].

    Args:
        perplexity (`float`): exp of `nll`.
        nll (`float`): Mean next-token loss, in nats per prediction.
        stderr (`float`): Standard error of `nll` over sequences, or over windows. NaN where there is only one.
        ntokens (`int`): Number of predictions: a sequence of T tokens has T - 1.
    """

    perplexity: float
    nll: float
    stderr: float
    ntokens: int


@dataclass(frozen=True)
class Difference:
    """
    Difference between the predictions of two models on the same tokens. Above zero, the first predicts worse.

    Args:
        nll (`float`):
            Mean next-token loss of the first model minus that of the second, in nats: the logarithm of
            `perplexity_ratio`.
        stderr (`float`):
            Standard error of `nll`, from the differences of each sequence. A sequence that is hard for both models
            does not count, so this is far smaller than the standard errors of both losses would suggest. NaN where
            there is only one sequence.
        perplexity_ratio (`float`): Perplexity of the first model divided by that of the second.
    """

    nll: float
    stderr: float
    perplexity_ratio: float


@dataclass(frozen=True, eq=False)
class Losses:
    """
    Next-token losses of a model, from which its perplexity and its difference from another model are computed.

    Args:
        sums (`torch.Tensor` of shape `(N,)`, float64): Sum over each sequence, or window, in nats.
        counts (`torch.Tensor` of shape `(N,)`, float64): Number of predictions in each.
    """

    sums: Tensor
    counts: Tensor

    def perplexity(self) -> Perplexity:
        """Computes the perplexity over all predictions, with equal weight."""
        nll, stderr = _mean_and_error(self.sums, self.counts)
        return Perplexity(perplexity=nll.exp().item(), nll=nll.item(), stderr=stderr, ntokens=int(self.counts.sum()))

    def difference(self, other: "Losses") -> Difference:
        """
        Compares these losses with those of another model.

        Args:
            other ([`Losses`]): of the same sequences.

        Returns:
            [`Difference`]: these losses minus the other ones.

        Raises:
            ValueError: the other losses are not of the same sequences.
        """
        if not torch.equal(self.counts, other.counts):
            sizes = (f"{len(losses.counts)} of {int(losses.counts.sum())}" for losses in (self, other))
            raise ValueError(
                f"Losses of different sequences ({' and '.join(sizes)} predictions) cannot be paired; measure both "
                "models on the same batches."
            )
        nll, stderr = _mean_and_error(self.sums - other.sums, self.counts)
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
    Measures the perplexity of a model over all predictions.

    Args:
        model (`PreTrainedModel`): a causal language model, evaluated without dropout.
        batches (`TokenBatches` or `list[dict]`): the result of [`load_batches`], or tokenised batches.
        seqlen (`int`, *optional*), stride (`int`, *optional*):
            Tokens in a window, and the distance between two windows. By default each sequence is a window. See
            [`evaluate_losses`].
        batch_size (`int`, defaults to 1): sequences, or windows, per forward.
        device (`torch.device` or `str`, *optional*): device that computes. By default the model's own.
        progress (`bool`, defaults to `False`): whether to show a progress bar.

    Returns:
        [`Perplexity`]: from losses per token in float32 and sums in float64.

    Raises:
        ValueError: a size is out of its range; batches are malformed; token ids are outside the vocabulary; no
            sequence has 2 tokens.
    """
    return evaluate_losses(
        model, batches, seqlen=seqlen, stride=stride, batch_size=batch_size, device=device, progress=progress
    ).perplexity()


@torch.no_grad()  # Inference mode would leave the model buffers that cannot be trained with.
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
    Measures the next-token losses of a model. It reads each sequence on its own, without its masked tokens.

    Args:
        model (`PreTrainedModel`):
            A causal language model. It is evaluated without dropout; its training mode is restored.
        batches (`TokenBatches` or `list[dict]`):
            The result of [`load_batches`], or mappings with `input_ids` `(B, T)` or `(T,)` and perhaps
            `attention_mask`.
        seqlen (`int`, *optional*):
            Tokens in a window; needs `stride`. By default each sequence is a window.
        stride (`int`, *optional*):
            Distance between two windows; needs `seqlen`. A token is predicted once, in the first window that holds it,
            where at least `seqlen - stride` tokens come before it unless the text begins there. The last window ends
            with the text and may be shorter. (transformers documentation, "Perplexity of fixed-length models"; here
            all predictions have equal weight.)
        batch_size (`int`, defaults to 1):
            Sequences, or windows, per forward. Shorter ones are padded on the right, where attention does not look.
            Logits of a whole batch can be gigabytes.
        device (`torch.device` or `str`, *optional*):
            Device that computes, to which the model is copied, or one layer at a time if it is too large for the
            device. By default its own.
        progress (`bool`, defaults to `False`):
            Whether to show how far it is.

    Returns:
        [`Losses`]: per sequence of at least 2 tokens, or per window, in order. Losses per token are in float32, sums
        in float64.

    Raises:
        ValueError: a size is out of its range; batches are malformed; token ids are outside the vocabulary; no
            sequence has 2 tokens.
    """
    check_sizes(seqlen, stride, batch_size)
    batches = load_batches(batches, vocab_size=model.get_input_embeddings().weight.shape[0])
    sequences = [sequence for batch in batches for sequence in _sequences(batch) if len(sequence) > 1]
    if not sequences:
        raise ValueError("Nothing to predict: no sequence has 2 unmasked tokens. Give longer sequences.")
    windows = [window for sequence in sequences for window in _windows(sequence, seqlen, stride)]

    # Windows of like lengths share a batch, which needs little padding. The longest come first, so that a lack of
    # memory shows at once.
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index][0]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    sums = torch.zeros(len(windows), dtype=torch.float64, device="cpu")
    with evaluating(model), nullcontext() if device is None else computing_on(model, torch.device(device)):
        for part in track(parts, "Perplexity", "forward", shown=progress):
            sums[part] = torch.stack(_sum_losses(model, [windows[index] for index in part]))
    return Losses(sums, torch.tensor([count for _, count in windows], dtype=torch.float64, device="cpu"))


def check_sizes(seqlen: int | None = None, stride: int | None = None, batch_size: int = 1) -> None:
    """
    Checks the sizes that [`evaluate_losses`] takes, before a model is loaded.

    Raises:
        ValueError: `batch_size` is below 1; only one of `seqlen` and `stride` is given; `stride` is not in
            `[1, seqlen)`.
    """
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
    """Returns the unmasked tokens of each row."""
    masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return [input_ids[mask] for input_ids, mask in zip(batch["input_ids"], masks, strict=True)]


def _windows(sequence: Tensor, seqlen: int | None, stride: int | None) -> list[tuple[Tensor, int]]:
    """Returns each window of a sequence, and the number of tokens at its end that it predicts."""
    windows, predicted = [], 1  # The first token counts as predicted: it has none before it.
    for start in range(0, len(sequence), stride or len(sequence)):
        end = min(start + (seqlen or len(sequence)), len(sequence))
        windows.append((sequence[start:end], end - predicted))
        predicted = end
        if end == len(sequence):
            break
    return windows


def _sum_losses(model: PreTrainedModel, windows: list[tuple[Tensor, int]]) -> list[Tensor]:
    """Returns the sum of the losses of each window, float64 on the CPU."""
    lengths = torch.tensor([len(tokens) for tokens, _ in windows], device="cpu")
    inputs = {"input_ids": pad_sequence([tokens for tokens, _ in windows], batch_first=True)}
    if lengths.min() < lengths.max():
        inputs["attention_mask"] = (torch.arange(lengths.max(), device="cpu") < lengths[:, None]).long()
    logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, use_cache=False).logits
    sums = []
    for row, (tokens, count) in zip(logits, windows, strict=True):
        targets = tokens[-count:].to(logits.device)
        sums.append(sum_over_positions(_sum_cross_entropy, row[len(tokens) - 1 - count : len(tokens) - 1], targets))
    return sums


def _sum_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none").double().sum().cpu()


def _mean_and_error(sums: Tensor, counts: Tensor) -> tuple[Tensor, float]:
    """
    Returns the mean over predictions, m = Σ sums / Σ counts, and its standard error over n sequences:
    √(n / (n - 1) · Σ (sums - m · counts)²) / Σ counts, that of a ratio of two sums (Cochran, 1977, "Sampling
    Techniques", on the estimation of a ratio). For sequences of one length, it is the standard deviation of their
    means divided by √n.
    """
    mean = sums.sum() / counts.sum()
    n = len(sums)
    deviation = (sums - mean * counts).square().sum().sqrt() / counts.sum()
    return mean, deviation.item() * math.sqrt(n / (n - 1)) if n > 1 else math.nan
