"""Hooks into transformers and PEFT: `from_pretrained`, `compress`, `push_to_hub`, levels of logging, LoRA targets."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo
from peft.utils import constants as peft_constants
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from .configuration import SliceGPTConfig
from .modeling.checks import is_sliced
from .modeling.families import FAMILIES, family_of
from .modeling.modeling_sliced import SlicedModelMixin
from .modeling.towers import has_tower
from .quantizer import SliceGPTQuantizer
from .reports.hub import push_to_hub
from .storage.older_readers import to_diff_dict


if TYPE_CHECKING:
    from .recovery import RecoveryConfig


class SliceGPTHfQuantizer(HfQuantizer):
    """A quantizer that slices a model once its weights are loaded, and leaves no quantization settings on it."""

    requires_calibration = False

    def validate_environment(self, *args, device_map=None, **kwargs):
        """
        Checks the device map.

        Raises:
            ValueError: the map spreads the model over devices, which slicing would undo.
        """
        if device_map in ("auto", "balanced", "balanced_low_0", "sequential") or (
            isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1
        ):
            raise ValueError(
                f"device_map={device_map!r} may spread the model over devices before it is sliced; load it on one "
                "device, slice, save, and load the sliced checkpoint with this device_map. "
                "SliceGPTConfig(device='cuda') slices a model in host memory layer by layer on the GPU."
            )

    def _process_model_before_weight_loading(self, model, **kwargs):
        family_of(model.config.text_config if has_tower(model) else model.config)

    def _process_model_after_weight_loading(self, model, **kwargs):
        self.remove_quantization_config(model)
        return SliceGPTQuantizer(self.quantization_config).quantize_model(model)

    def is_serializable(self):
        return False

    @property
    def is_trainable(self):
        return False


def compress(
    self: PreTrainedModel,
    config: SliceGPTConfig,
    tokenizer: Any = None,
    *,
    recover: RecoveryConfig | None = None,
    check: bool = False,
    refuse_above: float | None = None,
) -> PreTrainedModel:
    """
    Slices this model in place, with [`SliceGPTQuantizer.quantize_model`]. This is the `compress` of every
    `PreTrainedModel`.

    Args:
        config ([`SliceGPTConfig`]): how to slice.
        tokenizer (`str` or tokenizer, *optional*): for calibration data that is text.
        recover ([`RecoveryConfig`], *optional*):
            Recover the sliced model right away, see [`recover`]. By default it is left as slicing made it. With
            `distill` the weights of the dense model stay in memory until that is done: it is the teacher.
        check (`bool`), refuse_above (`float`, *optional*): see [`SliceGPTQuantizer.quantize_model`].

    Returns:
        `PreTrainedModel`: the model itself; with `keep_adapter` a `PeftModel` around it.
    """
    quantizer = SliceGPTQuantizer(config)
    if recover is None:
        return quantizer.quantize_model(self, tokenizer, check=check, refuse_above=refuse_above)
    if has_tower(self):
        raise ValueError(
            f"recover= fine-tunes language models, and a {type(self).__name__} has images, too; slice it without, and "
            "fine-tune it as the dense model would be."
        )
    from .recovery.fine_tuning import check_dtype  # loads transformers' Trainer
    from .recovery.fine_tuning import recover as fine_tune

    check_dtype(self, recover)
    teacher = copy.copy(self) if recover.distill else None  # It keeps the modules, of which this model gets others.
    quantizer.quantize_model(self, tokenizer, check=check, refuse_above=refuse_above)
    if teacher:
        shared = {parameter.untyped_storage().data_ptr() for parameter in teacher.parameters()}
        for parameter in self.parameters():
            # Tensors that slicing leaves alone are trained, too.
            if parameter.untyped_storage().data_ptr() in shared:
                parameter.data = parameter.data.clone()
    return fine_tune(self, tokenizer or config.tokenizer, recover, teacher=teacher)


push_dense_to_hub = PreTrainedModel.push_to_hub


def push_any_to_hub(self: PreTrainedModel, *args: Any, **kwargs: Any) -> CommitInfo | str:
    """
    Publishes this model: a sliced one with [`reports.hub.push_to_hub`], another as transformers does. This is the
    `push_to_hub` of every `PreTrainedModel`.
    """
    return (push_to_hub if is_sliced(self.config) else push_dense_to_hub)(self, *args, **kwargs)


def follow_verbosity() -> None:
    """Has this package log at the level that `transformers.logging` or TRANSFORMERS_VERBOSITY sets."""
    logger = logging.getLogger("optimum_slicegpt")
    if not logger.handlers:
        # The parent's level is inherited. Its handler is not used, because it would put its own name on every line.
        logger.parent = logging.getLogger("transformers")
        logger.propagate = False
        logger.addHandler(logging.StreamHandler())
        logger.handlers[0].setFormatter(logging.Formatter("[optimum-slicegpt] %(message)s"))


def register() -> None:
    """
    Registers the `slicegpt` quantization method, `compress` of every model, `push_to_hub` of sliced models and PEFT's
    default targets for them.
    """
    if "slicegpt" not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config("slicegpt")(SliceGPTConfig)
        register_quantizer("slicegpt")(SliceGPTHfQuantizer)
    follow_verbosity()
    PreTrainedModel.compress = compress
    SlicedModelMixin.push_to_hub = push_to_hub
    PreTrainedModel.push_to_hub = push_any_to_hub
    PreTrainedConfig.to_diff_dict = to_diff_dict

    lora_targets = peft_constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    tables = [table for name, table in vars(peft_constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")]
    for model_type, family in FAMILIES.items():
        for table in tables:
            if model_type in table:
                table[f"sliced_{model_type}"] = table[model_type]
        # PEFT has no default targets for some families. LoRA then goes onto the readers of attention.
        readers = [name.rpartition(".")[2] for name in family.attn_readers]
        lora_targets.setdefault(f"sliced_{model_type}", readers)
