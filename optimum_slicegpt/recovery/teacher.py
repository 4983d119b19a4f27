"""Finds the teacher of a recovery, the dense model, and loads it if it is given by name."""

import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..record import public_name
from .configuration import RecoveryConfig


def find_teacher(
    teacher: PreTrainedModel | str | os.PathLike | None,
    student: PreTrainedModel,
    config: RecoveryConfig,
    device: torch.device,
) -> PreTrainedModel | None:
    """
    Finds the teacher, and loads it if it is given by name. Its vocabulary is checked before any weights are read.

    Args:
        teacher (`PreTrainedModel`, `str` or `os.PathLike`, *optional*):
            The model, its name or its path. By default the model on the Hub from which the student was sliced.
        student (`PreTrainedModel`): a sliced model.
        config ([`RecoveryConfig`]): whether to distill; dtype and device of a teacher that is loaded here.
        device (`torch.device`): device of a teacher that is loaded here, unless `config` names one.

    Returns:
        `PreTrainedModel` or `None`: the teacher, or none without `config.distill`.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: `config.distill` needs a teacher and none is known; a teacher is given without `config.distill`; it
            has another vocabulary.
    """
    if not config.distill:
        if teacher is not None:
            raise ValueError(
                "A teacher is given (--teacher) and distill=False (--no-distill); leave out one of the two."
            )
        return None
    if isinstance(teacher, os.PathLike):
        teacher = os.fspath(teacher)
    if teacher is None:
        teacher = public_name(str((student.config.slicegpt or {}).get("base_model") or ""))
        if "/" not in teacher or os.path.exists(teacher):  # A folder comes before the Hub, and nobody has named it.
            known = f": it was sliced from {teacher!r}" if teacher else ""
            raise ValueError(
                f"The dense model is needed, and the record of this model names none on the Hub{known}. Give teacher= "
                "(--teacher), the dense model, its name or its path; or set distill=False (--no-distill), which makes "
                "a specialist for one kind of text."
            )
    is_name = isinstance(teacher, str)
    try:
        teacher_config = AutoConfig.from_pretrained(teacher) if is_name else teacher.config
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The dense model {teacher!r} cannot be loaded. Give teacher= (--teacher), the dense model, its name or "
            "its path; or set distill=False (--no-distill), which makes a specialist for one kind of text. "
            f"{error}"
        ) from error
    if teacher_config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"The teacher has a vocabulary of {teacher_config.vocab_size:,} tokens and the model one of "
            f"{student.config.vocab_size:,}; only with the same one can they be compared. Give the dense model from "
            "which this one was sliced."
        )
    if not is_name:
        return teacher
    loaded = AutoModelForCausalLM.from_pretrained(teacher, dtype=getattr(torch, config.teacher_dtype))
    return loaded.to(config.teacher_device or device)
