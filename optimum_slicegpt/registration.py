"""Tells the libraries around us about sliced models. Safe to run twice."""

import logging
from typing import Any

from peft.utils import constants as peft_constants
from transformers import PreTrainedModel
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from .configuration import SliceGPTConfig
from .hf_quantizer import SliceGPTHfQuantizer
from .hub import push_to_hub
from .modeling.families import FAMILIES
from .modeling.modeling_sliced import SlicedModelMixin
from .quantizer import SliceGPTQuantizer


def compress(self: PreTrainedModel, config: SliceGPTConfig, tokenizer: Any = None) -> PreTrainedModel:
    """
    Slices this model in place, see [`SliceGPTQuantizer.quantize_model`]. Becomes `PreTrainedModel.compress`.

    Args:
        config ([`SliceGPTConfig`]): how to slice.
        tokenizer (`str` or tokenizer, *optional*): for calibration data that is text.

    Returns:
        `PreTrainedModel`: the model itself.
    """
    return SliceGPTQuantizer(config).quantize_model(self, tokenizer)


def follow_verbosity() -> None:
    """Messages are of the level that `transformers.logging` or TRANSFORMERS_VERBOSITY sets."""
    logger = logging.getLogger("optimum_slicegpt")
    if not logger.handlers:
        logger.parent = logging.getLogger("transformers")  # whose level is inherited, but not its name on every line
        logger.propagate = False
        logger.addHandler(logging.StreamHandler())
        logger.handlers[0].setFormatter(logging.Formatter("[optimum-slicegpt] %(message)s"))


def register() -> None:
    """`from_pretrained(quantization_config=SliceGPTConfig(...))`, `model.compress(...)`, default targets of PEFT."""
    if "slicegpt" not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config("slicegpt")(SliceGPTConfig)
        register_quantizer("slicegpt")(SliceGPTHfQuantizer)
    follow_verbosity()
    PreTrainedModel.compress = compress
    SlicedModelMixin.push_to_hub = push_to_hub

    lora_targets = peft_constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    tables = [table for name, table in vars(peft_constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")]
    for model_type, family in FAMILIES.items():
        for table in tables:
            if model_type in table:
                table[f"sliced_{model_type}"] = table[model_type]
        # A family that PEFT has no default for still gets one for LoRA: what attention reads.
        readers = [name.rpartition(".")[2] for name in family.attn_readers]
        lora_targets.setdefault(f"sliced_{model_type}", readers)
