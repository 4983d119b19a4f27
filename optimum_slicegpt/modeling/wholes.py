"""Models of images and text around a sliced text tower."""

from functools import cache, partial

from huggingface_hub.dataclasses import strict
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from .families import TOWERS, deep_writers
from .modeling_sliced import Undefined
from .weights import Writer, deep_values


class SlicedWholeConfigMixin:
    """What a configuration needs that would take a text configuration of any type for one of the dense class."""

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, dict):
            self.text_config = CONFIG_MAPPING[self.text_config["model_type"]](**self.text_config)
        super().__post_init__(**kwargs)


class SlicedWholeMixin:
    """What a model needs whose code builds a dense text model, or writes to one, whatever its configuration says."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        name = TOWERS[config.model_type.removeprefix("sliced_")].name
        if type(getattr(self.base_model, name)) is not MODEL_MAPPING[type(config.text_config)]:
            setattr(self.base_model, name, AutoModel.from_config(config.text_config))
        for site, name in deep_writers(config, self.base_model).items():
            Writer(self.base_model, name).resize(config.text_config.widths[site])
        self.post_init()


@cache
def define_whole(model_type: str) -> type:
    """
    Derives the configuration and the model for a sliced tower of a type of models of images and text whose dense
    configuration names the class of its text configuration, and registers them with the Auto classes.

    Returns:
        `type`: the class of the configuration.
    """
    base = CONFIG_MAPPING[model_type]
    dense, own = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[base], {"__module__": __name__}
    config_class = strict(
        type(f"Sliced{base.__name__}", (SlicedWholeConfigMixin, base), own | {"model_type": f"sliced_{model_type}"})
    )
    model_class = type(f"Sliced{dense.__name__}", (SlicedWholeMixin, dense), own | {"config_class": config_class})
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForImageTextToText.register(config_class, model_class, exist_ok=True)
    return config_class


def put_back(whole: PreTrainedModel, sliced: PreTrainedModel) -> None:
    """
    Replaces the text tower of a model of images and text.

    Args:
        whole (`PreTrainedModel`): the dense model.
        sliced (`PreTrainedModel`): what became of its [`towers.text_tower`].
    """
    config, model_type = whole.config, whole.config.model_type
    setattr(whole.base_model, TOWERS[model_type].name, sliced.base_model)
    for name, values in deep_values(sliced).items():
        writer = Writer(whole.base_model, name)
        writer.set(*values, like=writer.weight)
    whole.set_output_embeddings(sliced.get_output_embeddings())
    config.text_config = sliced.config
    if config.sub_configs["text_config"] is not AutoConfig:
        config.__class__ = define_whole(model_type)
        whole.__class__ = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]


for _model_type in TOWERS:
    _define = staticmethod(partial(define_whole, _model_type))
    AutoConfig.register(f"sliced_{_model_type}", Undefined(_model_type, (), {"define": _define}), exist_ok=True)
