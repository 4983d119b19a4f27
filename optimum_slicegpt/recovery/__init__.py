"""Recovers sliced models by fine-tuning: with LoRA or of all parameters, alone or with the dense model as teacher."""

from .configuration import RecoveryConfig
from .fine_tuning import recover


__all__ = ["RecoveryConfig", "recover"]
