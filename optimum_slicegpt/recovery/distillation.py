"""
Trains a sliced model on the dense model's distribution over the next token, instead of the token that follows, or
besides it.

References: Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network", section 2.
"""

from collections.abc import Iterator
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.losses import UNLABELLED


LOGITS_AT_ONCE = 2**22
"""Number of logits that are in float32 at a time: 16 MiB, so that they stay in the caches of a CPU."""


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0, weight: float = 1.0
) -> Tensor:
    """
    Sums (1 - w) * cross-entropy + w * τ² * KL(p || q) over all labelled positions, where p = softmax(teacher / τ) and
    q = softmax(student / τ).

    It takes `LOGITS_AT_ONCE` logits at a time, in float32. The gradient is computed with the loss, while both
    distributions are at hand, in the dtype of the student's logits; the backward pass only multiplies it.

    Args:
        student (`torch.Tensor` of shape `(B, T, V)`): logits of the student.
        teacher (`torch.Tensor` of shape `(B, T, V)`): logits of the teacher, on any device and in any dtype.
        labels (`torch.Tensor` of shape `(B, T)`, int64): as models take them: not shifted, -100 for no label.
        temperature (`float`, defaults to 1.0): τ.
        weight (`float`, defaults to 1.0): w.

    Returns:
        `torch.Tensor`: a scalar, float32, in nats times the number of labels.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 10, 32), torch.zeros(2, 10, 32)
        >>> labels = torch.arange(20).view(2, 10)  # 9 next tokens in each row
        >>> f"{distillation_loss(student, teacher, labels, weight=0.5).item():.2f}"  # 18 * 0.5 * log(32): both agree
        '31.19'
    """
    return _DistillationLoss.apply(student, teacher, labels, temperature, weight)


class _DistillationLoss(torch.autograd.Function):
    """[`distillation_loss`], with the gradient computed beside it."""

    @staticmethod
    def forward(ctx, student, teacher, labels, temperature, weight):
        gradient, total = torch.zeros_like(student), 0
        parts = student[:, :-1], teacher[:, :-1], labels[:, 1:], gradient[:, :-1]
        for logits, targets, tokens, slope in chunks(*parts):
            counts = (tokens != UNLABELLED).float()
            losses = []
            if weight:
                losses.append((weight, *divergence(logits, targets, temperature)))
            if weight < 1:
                losses.append((1 - weight, *cross_entropy(logits, tokens)))
            for share, loss, derivative in losses:
                total += share * (loss * counts).sum()
                derivative.mul_((share * counts)[..., None])
            # Both are added up in float32, and rounded once.
            slope.copy_(reduce(torch.add, (derivative for _, _, derivative in losses)))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, scale):
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None, None


def chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """
    Cuts tensors along their positions into chunks of about `LOGITS_AT_ONCE` logits.

    Args:
        logits (`torch.Tensor` of shape `(B, T, V)`): their number counts.
        others (`torch.Tensor`): of shape `(B, T, ...)`.
    """
    positions = max(1, LOGITS_AT_ONCE // (logits.shape[0] * logits.shape[2]))
    return zip(*(tensor.split(positions, dim=1) for tensor in (logits, *others)), strict=True)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """
    Computes the divergence of the student's distribution from the teacher's at every position.

    Args:
        student (`torch.Tensor` of shape `(B, T, V)`), teacher (`torch.Tensor` of shape `(B, T, V)`): logits.
        temperature (`float`): τ of [`distillation_loss`].

    Returns:
        `tuple`: τ² KL(p || q), `(B, T)`; its derivative with respect to the student's logits, `(B, T, V)`.
    """
    log_p = F.log_softmax(teacher.to(student.device).float() / temperature, -1)
    log_q = F.log_softmax(student.float() / temperature, -1)
    p = log_p.exp()
    found = log_p.sub_(log_q).mul_(p).sum(-1)
    return temperature**2 * found, log_q.exp_().sub_(p).mul_(temperature)


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """
    Computes the cross-entropy at every position. Where there is no label, it is that of token 0.

    Args:
        logits (`torch.Tensor` of shape `(B, T, V)`), labels (`torch.Tensor` of shape `(B, T)`): shifted.

    Returns:
        `tuple`: `(B, T)`, and its derivative with respect to the logits, `(B, T, V)`.
    """
    log_q, tokens = F.log_softmax(logits.float(), -1), labels.clamp(min=0)[..., None]
    found = -log_q.gather(-1, tokens)
    return found[..., 0], log_q.exp_().scatter_add_(-1, tokens, -torch.ones_like(found))
