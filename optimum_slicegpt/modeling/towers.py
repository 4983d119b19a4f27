"""The causal language model inside a model of images and text: its text tower, and its head."""

from __future__ import annotations

import copy
import inspect

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from .families import TOWERS, family_of
from .heads import define_head
from .weights import whole_of


WIDE_ENTRY = "features of images enter its stream beside the table"
"""Why the text table of a model of images and text keeps its width."""


def has_tower(model: PreTrainedModel) -> bool:
    """Tells whether a model is one of images and text whose text tower can be sliced, if it is of a known family."""
    return model.config.model_type in TOWERS


def text_tower(whole: PreTrainedModel) -> PreTrainedModel:
    """
    Returns the causal language model inside a model of images and text, whose text model and head it shares.

    Args:
        whole (`PreTrainedModel`): a dense model of images and text, see [`has_tower`].

    Raises:
        ValueError: no row describes the family of its text model.
    """
    own, head = whole.config.text_config, whole.get_output_embeddings()
    config = copy.deepcopy(own)
    config.name_or_path = whole.name_or_path
    config.tie_word_embeddings = head.weight is whole.get_input_embeddings().weight
    family = family_of(config)
    define_head(type(config))
    with torch.device("meta"):
        tower = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(
            config,
            dtype=whole.dtype,
            attn_implementation=own._attn_implementation,
            experts_implementation=own._experts_implementation,
        )
    setattr(tower, tower.base_model_prefix, getattr(whole.base_model, TOWERS[whole.config.model_type].name))
    setattr(tower, family.head, head)
    tower.generation_config, tower.training = whole.generation_config, whole.training
    vars(tower)["_whole"] = whole  # It is no module of the tower, because the tower's modules are among its own.
    return tower


def image_inputs(model: PreTrainedModel) -> set[str]:
    """Returns the names of what a model can be given beside tokens and their mask, if it is a text tower."""
    whole = whole_of(model)
    if whole is None:
        return set()
    return {*inspect.signature(whole.base_model.forward).parameters} - {"input_ids", "attention_mask", "labels"}
