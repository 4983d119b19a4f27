"""Puts LoRA on a sliced model, by its row in the table of families, and removes it."""

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..modeling.decoder import Decoder
from .configuration import RecoveryConfig


logger = logging.get_logger(__name__)


def lora_config(model: PreTrainedModel, config: RecoveryConfig) -> LoraConfig:
    """
    Configures LoRA on all readers and writers in the layers of a model, and with `config.shortcuts` on the linear
    layers that slicing added. Routers and stacked experts are no linear layers: they are `target_parameters`, which
    PEFT trains without dropout only, so such a model has none.

    Args:
        model (`PreTrainedModel`): a causal language model, sliced or dense.
        config ([`RecoveryConfig`]): rank, alpha, dropout, shortcuts.

    Returns:
        `peft.LoraConfig`: for `peft.get_peft_model`.

    Raises:
        ValueError: `config.shortcuts` is set, and slicing added no linear layers.
    """
    weights = {}
    for block in Decoder(model).blocks():
        weights |= block.readers() | block.writers()
    linear = [name for name, weight in weights.items() if isinstance(weight.module, nn.Linear | Conv1D)]
    if config.shortcuts:
        linear += added_linear_layers(model)
    parameters = [
        name if weight.key != "weight" else f"{name}.weight" for name, weight in weights.items() if name not in linear
    ]
    if parameters and config.lora_dropout:
        logger.warning(f"lora_dropout={config.lora_dropout} is left out: PEFT trains {', '.join(parameters)} without.")
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0 if parameters else config.lora_dropout,
        target_modules=linear,
        target_parameters=parameters or None,
        fan_in_fan_out=any(isinstance(weight.module, Conv1D) for weight in weights.values()),
    )


def added_linear_layers(model: PreTrainedModel) -> list[str]:
    """
    Names the linear layers that slicing added: shortcuts, and projections behind a tied table and before its head.

    Args:
        model (`PreTrainedModel`): a sliced model.

    Returns:
        `list[str]`: last parts of their names, as `target_modules` of PEFT.

    Raises:
        ValueError: slicing added none.
    """
    config, family = model.config, Decoder(model).family
    names = [block.shortcut for block in family.blocks] if getattr(config, "shortcuts", False) else []
    if getattr(config, "embedding_size", None) is not None:
        names += ["embedding_projection", f"{family.final_norm}.projection"]
    if not names:
        raise ValueError(
            "shortcuts=True, and this model has none: all its blocks share one rotation, and its embeddings are "
            "sliced. Leave shortcuts out."
        )
    return names


def remove_adapters(adapted: PeftModel, trainable: list[nn.Parameter], *, merge: bool) -> PreTrainedModel:
    """
    Removes the adapters of a model.

    Args:
        adapted (`PeftModel`): the model with its adapters.
        trainable (`list[torch.nn.Parameter]`): parameters that were trainable before, and are so again.
        merge (`bool`): whether to add the adapters to the weights.

    Returns:
        `PreTrainedModel`: the model inside.
    """
    model = adapted.merge_and_unload() if merge else adapted.unload()
    for parameter in trainable:
        parameter.requires_grad_(True)
    return model
