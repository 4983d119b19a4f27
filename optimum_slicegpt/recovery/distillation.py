"""Learning from the dense model: its whole distribution over the next token, beside the token that came."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..model_card import public_name
from .configuration import RecoveryConfig
from .packing import UNLABELLED


POSITIONS = 256
"""Whose logits are in float32 at a time."""


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0, weight: float = 0.5
) -> Tensor:
    """
    Sum over labelled positions of (1 - w) * cross-entropy + w * T² * KL(teacher || student), both distributions
    softmax(logits / T) in the divergence (Hinton et al., 2015, section 2).

    Computed some positions at a time, there again in the backward pass, so that beyond the logits themselves memory
    does not grow with their number.

    Args:
        student (`torch.Tensor` of shape `(B, T, V)`), teacher (`torch.Tensor` of shape `(B, T, V)`):
            Logits. The teacher's may be on another device and of another dtype.
        labels (`torch.Tensor` of shape `(B, T)`, int64): as models take them: not shifted, -100 where there is none.
        temperature (`float`, defaults to 1.0), weight (`float`, defaults to 0.5): T and w.

    Returns:
        `torch.Tensor`: a scalar, float32, in nats times the number of labels.
    """
    parts = (
        student[:, :-1].split(POSITIONS, 1),
        teacher[:, :-1].split(POSITIONS, 1),
        labels[:, 1:].split(POSITIONS, 1),
    )
    once_more = {"use_reentrant": False, "preserve_rng_state": False}
    return sum(checkpoint(_loss_of, *part, temperature, weight, **once_more) for part in zip(*parts, strict=True))


def _loss_of(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float) -> Tensor:
    student, teacher = student.float(), teacher.to(student.device).float()
    cross_entropy = F.cross_entropy(student.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="sum")
    log_q, log_p = (F.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)[labels != UNLABELLED].sum()
    return (1 - weight) * cross_entropy + weight * temperature**2 * divergence


def find_teacher(
    teacher: PreTrainedModel | str | None, student: PreTrainedModel, config: RecoveryConfig, device: torch.device
) -> PreTrainedModel | None:
    """
    The teacher, loaded if it is given by name; of a name that cannot be one, no weights are read.

    Args:
        teacher (`PreTrainedModel` or `str`, *optional*): the model, its name or its path. By default the model that
            the student was sliced from, if it is on the Hub.
        student (`PreTrainedModel`): a sliced model.
        config ([`RecoveryConfig`]): whether there is to be one; dtype and device of one that is given by name.
        device (`torch.device`): where to place that unless `config` says.

    Raises:
        OSError: there is no such model.
        ValueError: one is needed and not given, or the other way round; it has another vocabulary.
    """
    if not config.distill:
        if teacher is not None:
            raise ValueError("A teacher is given and distill=False; set distill=True, or leave the teacher out.")
        return None
    if teacher is None:
        teacher = public_name((student.config.slicegpt or {}).get("base_model") or "")
        if "/" not in teacher:
            raise ValueError(
                "distill=True needs a teacher, and the model does not say which one on the Hub it was sliced from. "
                "Give the dense model, its name or its path."
            )
    by_name = isinstance(teacher, str)
    theirs = AutoConfig.from_pretrained(teacher) if by_name else teacher.config
    if theirs.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"The teacher has a vocabulary of {theirs.vocab_size:,} tokens and the model one of "
            f"{student.config.vocab_size:,}; only with the same one can they be compared. Give the dense model from "
            "which this one was sliced."
        )
    if not by_name:
        return teacher
    loaded = AutoModelForCausalLM.from_pretrained(teacher, dtype=getattr(torch, config.teacher_dtype))
    return loaded.to(config.teacher_device or device)
