"""Where LoRA goes, from the table of families."""

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..modeling.families import family_of
from ..modeling.weights import Reader
from .configuration import RecoveryConfig


logger = logging.get_logger(__name__)


def lora_config(model: PreTrainedModel, config: RecoveryConfig) -> LoraConfig:
    """
    LoRA on all that reads or writes the residual stream in the layers of a sliced model, and where asked for on the
    linear layers that slicing added.

    Args:
        model (`PreTrainedModel`): a sliced causal language model.
        config ([`RecoveryConfig`]): rank, alpha, dropout, shortcuts.

    Returns:
        `peft.LoraConfig`: routers and stacked experts, which are no linear layers, are its `target_parameters`. PEFT
        trains these without dropout only, so there is none for such a model.

    Raises:
        ValueError: slicing added no linear layers, and `config.shortcuts` asks for them.
    """
    family = family_of(model.config)
    layer = getattr(model.base_model.get_submodule(family.body), family.layers)[0]
    names = [
        name for block in family.blocks for name in (*(n for _, names in block.reads for n in names), *block.writers)
    ]
    weights = {name: Reader(layer, name) for name in names}
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
    Names of the linear layers that the dense model does not have: shortcuts, and projections around a tied table.

    Raises:
        ValueError: there are none.
    """
    config, family = model.config, family_of(model.config)
    names = [block.shortcut for block in family.blocks] if config.shortcuts else []
    if config.embedding_size is not None:
        names += ["embedding_projection", f"{family.final_norm}.projection"]
    if not names:
        raise ValueError(
            "shortcuts=True, and this model has none: all its blocks share one rotation, and its embeddings are "
            "sliced. Leave shortcuts out."
        )
    return names
