"""Causal language models around text models that transformers has no such class for."""

from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, LlamaForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING


class HeadedMixin:
    """A head behind a text model, with the names that most causal language models have."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _text_model: type

    def __init__(self, config):
        super().__init__(config)
        self.model = self._text_model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    forward = LlamaForCausalLM.forward


def define_head(config_class: type) -> None:
    """Lets `AutoModelForCausalLM` know a class for a text model's configuration, where transformers has none."""
    if config_class in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    text_model = MODEL_MAPPING[config_class]
    base = text_model.__base__
    name = f"{text_model.__name__.removesuffix('Model')}ForCausalLM"
    # transformers reads the source of a class's module to find out what its layers support.
    namespace = {"__module__": text_model.__module__, "config_class": config_class, "_text_model": text_model}
    # Without `exist_ok`, a class for a configuration of transformers' own would be left out.
    AutoModelForCausalLM.register(
        config_class, type(name, (HeadedMixin, base, GenerationMixin), namespace), exist_ok=True
    )
