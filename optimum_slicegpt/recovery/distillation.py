"""
Trains a sliced model on the dense model's distribution over the next token, besides the token that follows.

References: Hinton, Vinyals and Dean, 2015, "Distilling the Knowledge in a Neural Network", section 2.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..evaluation.losses import UNLABELLED, sum_over_positions


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0, weight: float = 0.5
) -> Tensor:
    """
    Sums (1 - w) * cross-entropy + w * τ² * KL(p || q) over all labelled positions, where p = softmax(teacher / τ) and
    q = softmax(student / τ).

    It takes `POSITIONS` positions at a time, and computes them again in the backward pass. Besides the logits, it
    needs memory for these positions only.

    Args:
        student (`torch.Tensor` of shape `(B, T, V)`): logits of the student.
        teacher (`torch.Tensor` of shape `(B, T, V)`): logits of the teacher, on any device and in any dtype.
        labels (`torch.Tensor` of shape `(B, T)`, int64): as models take them: not shifted, -100 for no label.
        temperature (`float`, defaults to 1.0): τ.
        weight (`float`, defaults to 0.5): w.

    Returns:
        `torch.Tensor`: a scalar, float32, in nats times the number of labels.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 10, 32), torch.zeros(2, 10, 32)
        >>> labels = torch.arange(20).view(2, 10)  # 9 next tokens in each row
        >>> f"{distillation_loss(student, teacher, labels).item():.2f}"  # 18 * 0.5 * log(32): both agree
        '31.19'
    """

    def recomputed_loss(*chunk: Tensor) -> Tensor:
        return checkpoint(_sum_loss, *chunk, temperature, weight, use_reentrant=False, preserve_rng_state=False)

    return sum_over_positions(recomputed_loss, student[:, :-1], teacher[:, :-1], labels[:, 1:], dim=1)


def _sum_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float) -> Tensor:
    student, teacher = student.float(), teacher.to(student.device).float()
    cross_entropy = F.cross_entropy(student.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="sum")
    log_q, log_p = (F.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)[labels != UNLABELLED].sum()
    return (1 - weight) * cross_entropy + weight * temperature**2 * divergence
