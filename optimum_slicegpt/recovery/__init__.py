"""Recovery: fine-tuning after slicing, with LoRA or of everything, alone or with the dense model as the teacher."""

from .configuration import RecoveryConfig
from .fine_tuning import recover


__all__ = ["RecoveryConfig", "recover"]
