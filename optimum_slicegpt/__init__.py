"""
SliceGPT for Hugging Face models: rotate the residual stream onto its principal axes, delete the least important rows
and columns of every weight matrix, keep a smaller dense model.

Importing this package registers the sliced architectures with the Auto classes, the `slicegpt` quantization method
with `from_pretrained`, and `compress` on every `PreTrainedModel`.
"""

from typing import TYPE_CHECKING

from .configuration import SliceGPTConfig
from .data.batches import load_batches
from .evaluation.perplexity import evaluate_losses, evaluate_perplexity
from .modeling.families import FAMILIES
from .planning.widths import SlicePlan
from .quantizer import SliceGPTQuantizer
from .registration import register
from .storage.tokenizers import save_tokenizer
from .streaming import compress_checkpoint


if TYPE_CHECKING:
    from .recovery import RecoveryConfig, recover

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "RecoveryConfig",
    "SliceGPTConfig",
    "SliceGPTQuantizer",
    "SlicePlan",
    "compress_checkpoint",
    "evaluate_losses",
    "evaluate_perplexity",
    "load_batches",
    "recover",
    "save_tokenizer",
]

register()


def __getattr__(name: str):
    # Importing recovery loads transformers' Trainer and `datasets`, some 100 MB that slicing does not need.
    if name in ("RecoveryConfig", "recover"):
        from . import recovery

        return getattr(recovery, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
