"""
SliceGPT for Hugging Face models: rotate the residual stream onto its principal axes, delete the least important rows
and columns of every weight matrix, keep a smaller dense model.

Importing this package registers the sliced architectures with the Auto classes, the `slicegpt` quantization method
with `from_pretrained`, and `compress` on every `PreTrainedModel`.
"""

from transformers import PreTrainedModel
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from . import modeling
from .calibration import load_batches
from .configuration import SliceGPTConfig
from .evaluation import evaluate_perplexity
from .hf_quantizer import SliceGPTHfQuantizer
from .modeling import modeling_sliced
from .modeling.families import FAMILIES
from .quantizer import SliceGPTQuantizer
from .widths import SlicePlan


__version__ = "0.1.0.dev0"

__all__ = [
    "FAMILIES",
    "SliceGPTConfig",
    "SliceGPTQuantizer",
    "SlicePlan",
    "evaluate_perplexity",
    "load_batches",
]


def _compress(self: PreTrainedModel, config: SliceGPTConfig, tokenizer=None) -> PreTrainedModel:
    """
    Slices this model in place, see [`SliceGPTQuantizer.quantize_model`].

    Args:
        config ([`SliceGPTConfig`]): how to slice.
        tokenizer (`str` or tokenizer, *optional*): for calibration data that is text.

    Returns:
        `PreTrainedModel`: the model itself.
    """
    return SliceGPTQuantizer(config).quantize_model(self, tokenizer)


if "slicegpt" not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config("slicegpt")(SliceGPTConfig)
    register_quantizer("slicegpt")(SliceGPTHfQuantizer)
    PreTrainedModel.compress = _compress
