"""
The dense model as its family's own class and configuration have it. A model may be of another class that computes the
same, such as one of remote code, may carry hooks, may have come out of a quantized file, or may tie its head unlike
its configuration.
"""

import torch
from accelerate import init_empty_weights
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.initialization import no_init_weights

from ..modeling.contexts import evaluating
from ..modeling.decoder import Decoder
from ..modeling.stock import own_config
from ..modeling.weights import persistent_buffers


SAME = 1e-2
"""Largest difference of logits, relative to the largest logit, of two models that compute the same in 8 or 16 bits."""


def stock_twin(model: PreTrainedModel) -> PreTrainedModel:
    """
    Returns a dense model as one of its family's own class, which holds the same parameters.

    Args:
        model (`PreTrainedModel`): any that [`check_sliceable`] accepts.

    Returns:
        `PreTrainedModel`: `model` itself if it is what its configuration says, perhaps with hooks that only read.

    Raises:
        ValueError: the model computes something else than its family's own class.
    """
    plain = is_stock(model) and getattr(model, "hf_quantizer", None) is None
    decoder = Decoder(model)
    shared = decoder.head.weight is decoder.tables[0].weight
    own = plain and model.config.tie_word_embeddings == shared == is_tied(model)
    altered = any(map(_is_altered, model.modules()))
    if own and not altered:
        return model
    twin = _with_parameters_of(model)
    if altered or not plain:
        _check_same(model, twin)
    return model if own else twin


def is_stock(model: PreTrainedModel) -> bool:
    """Tells whether a dense model and its configuration are of their family's own classes."""
    config_class = CONFIG_MAPPING[model.config.model_type]
    return type(model.config) is config_class and type(model) is MODEL_FOR_CAUSAL_LM_MAPPING[config_class]


def _is_altered(module):
    """Tells whether a module has hooks, or a forward that is not of a class of torch or transformers."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(hooked) or type(module).__module__.partition(".")[0] not in ("torch", "transformers")


def is_tied(model: PreTrainedModel) -> bool:
    """
    Tells whether the head of a causal language model has the weights of its embedding, whatever its configuration
    says. Where that ties them, equal values are enough.
    """
    decoder = Decoder(model)
    head, table = decoder.head.weight, decoder.tables[0].weight
    return head.data_ptr() == table.data_ptr() or (model.config.tie_word_embeddings and torch.equal(head, table))


def _with_parameters_of(model):
    config = own_config(model.config)
    config.tie_word_embeddings = is_tied(model)
    with model.device, no_init_weights(), init_empty_weights(include_buffers=False):
        twin = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(
            config,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            experts_implementation=model.config._experts_implementation,
        )
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, key = name.rpartition(".")
        twin.get_submodule(owner)._parameters[key] = parameter
    for name, buffer in persistent_buffers(model).items():
        owner, _, key = name.rpartition(".")
        setattr(twin.get_submodule(owner), key, buffer)
    twin.tie_weights()
    twin.generation_config = model.generation_config
    return twin.train(model.training)


@torch.no_grad()
def _check_same(model, twin):
    # The first tokens of a vocabulary may be padding, whose embedding is often zero.
    ids = torch.arange(1, 9, device=model.device)[None] * model.config.vocab_size // 9
    with evaluating(model), evaluating(twin):
        given, stock = (each(input_ids=ids, use_cache=False).logits.float() for each in (model, twin))
    if not (given - stock).abs().max() <= SAME * stock.abs().max():
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ValueError(
            f"This {kind} computes something else than transformers' own {type(twin).__name__}, which the result is "
            "to be; load the checkpoint with its family's own class, without trust_remote_code, hooks or patches."
        )
