"""
The table of families: which modules of each read and write the residual stream.

A family is a `model_type` of transformers. Its row holds names, never code: the forward of a sliced decoder layer
([`layer_sliced.SlicedLayerMixin`]), the fusion of norms, the rotation and the parameter count all read this table
and know no other names. The rows are in files of their kind, which travel with checkpoints as this one does.
"""

from dataclasses import replace
from functools import partial
from itertools import count, takewhile

from .families_experts import EXPERTS
from .families_hybrid import HYBRID
from .families_layer_norm import LAYER_NORM
from .families_post_norm import POST_NORM
from .families_rms_norm import RMS_NORM
from .family import Family, Tower, has


FAMILIES: dict[str, Family] = RMS_NORM | POST_NORM | EXPERTS | HYBRID | LAYER_NORM
"""Rows of the families that can be sliced, by `model_type`."""

TOWERS: dict[str, Tower] = {
    **dict.fromkeys(
        (
            *("llava", "llava_next", "llava_onevision", "vipllava", "paligemma", "mistral3", "internvl", "aya_vision"),
            *("cohere2_vision", "lfm2_vl", "lighton_ocr", "got_ocr2", "ovis2", "gemma3", "aria"),
            *("qwen3_5", "qwen3_5_moe", "qwen2_vl", "qwen2_5_vl"),
        ),
        Tower(),
    ),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), Tower(deep_writers="visual.deepstack_merger_list.{}.linear_fc2")),
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), Tower("text_model")),
}
"""Models of images and text that hold a text model of any family, by `model_type`."""

POST_LAYER_NORM = "its norms act on the residual stream itself, so that no connection leads around them"
PER_LAYER = "its layers read embeddings of their own beside the residual stream"
EXPERTS_BEHIND = "the norms behind its experts need writers that are fitted, and experts are not fitted"
NORMS_BEHIND = "it has norms behind its blocks, in an arrangement that no row describes yet"
WHOLE = "it is a model of images and text; load it with AutoModelForImageTextToText, and slice it in memory (compress)"
PER_CHANNEL = "it scales the residual stream channel by channel, which does not commute with a rotation"
NOT_SLICEABLE: dict[str, str] = {
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), PER_LAYER),
    **dict.fromkeys(("gemma4_unified", "gemma4_unified_text"), PER_LAYER),
    "flex_olmo": EXPERTS_BEHIND,
    **dict.fromkeys(("olmo_hybrid", "afmoe", "axk1", "beam", "kolibri1", "lfm3"), NORMS_BEHIND),
    "openai-gpt": POST_LAYER_NORM,
    **dict.fromkeys(("doge", "zaya"), PER_CHANNEL),
    "minimax": "its residual connections start behind the norms, whose gains act channel by channel",
}
"""Families that computational invariance excludes, or that are not described yet, and the reasons."""


def family_of(config) -> Family:
    """
    Returns a model's row in the table, changed for its variant of the family.

    Args:
        config (`PreTrainedConfig`): of a dense or a sliced model.

    Raises:
        ValueError: the family is not in the table; the family, or this variant of it, cannot be sliced.
    """
    model_type = config.model_type.removeprefix("sliced_")
    if model_type not in FAMILIES:
        unknown = "no table row describes where it reads and writes the residual stream"
        reason = WHOLE if model_type in TOWERS else NOT_SLICEABLE.get(model_type, unknown)
        raise ValueError(f"Cannot slice model_type={model_type!r}: {reason}. Supported: {', '.join(FAMILIES)}.")
    family = FAMILIES[model_type]
    for key, value, reason in family.requires:
        if getattr(config, key, value) != value:
            raise ValueError(
                f"Cannot slice this {model_type} model: {key}={getattr(config, key)!r}, and {reason}. "
                f"Only {model_type} models with {key}={value!r} can be sliced."
            )
    for key, value, changes in family.variants:
        if getattr(config, key) == value:
            family = replace(family, **changes)
    return family


def deep_writers(config, base) -> dict[int, str]:
    """
    Returns the names of the weights that add features of images to the stream of a text model behind its layers.

    Args:
        config (`PreTrainedConfig`): of a model of images and text, whose text model is dense or sliced.
        base (`nn.Module`): its base model.

    Returns:
        `dict[int, str]`: names in the base model, by the site that reads the sum.
    """
    pattern = TOWERS[config.model_type.removeprefix("sliced_")].deep_writers
    if not pattern:
        return {}
    family, step = family_of(config.text_config), len(family_of(config.text_config).blocks)
    sites = range(step, family.num_sites(config.text_config), step)
    return dict(zip(sites, takewhile(partial(has, base), map(pattern.format, count())), strict=False))


def begin_tokens(config) -> list[int]:
    """
    Returns the tokens with which any text begins for a model, none where it does not need them.

    Args:
        config (`PreTrainedConfig`): of any model.
    """
    family = FAMILIES.get(config.model_type.removeprefix("sliced_"))
    return [config.bos_token_id] if family is not None and family.begin_token else []


def num_neurons(config) -> int:
    """Returns the number of neurons in each MLP of a dense model."""
    # A configuration of GPT-2 may hold None, for four times the hidden size.
    family = family_of(config)
    return (getattr(config, family.neurons_key, None) or 4 * config.hidden_size) // family.neuron_units


def check_equal_widths(config, widths, tied: bool) -> None:
    """
    Checks that sites are equally wide where the family's code needs it.

    Args:
        config (`PreTrainedConfig`): of a dense or a sliced model.
        widths (`Sequence[int]`): one per site.
        tied (`bool`): whether the head shares the embedding's matrix.

    Raises:
        ValueError: two sites that must be equally wide differ in width.
    """
    for first, second, reason in family_of(config).equal_sites(config, tied):
        if widths[first] != widths[second]:
            raise ValueError(
                f"widths holds {widths[first]} at site {first} and {widths[second]} at site {second}; they must be "
                f"equal, because {reason}."
            )
