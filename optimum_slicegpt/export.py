"""
Export of a sliced model to a stock class, which every tool of its family can read: for results of
`architecture="sliced"` that have a stock form, see [`StockForm`].
"""

import torch
from transformers import PreTrainedModel

from .modeling.checks import is_sliced
from .modeling.decoder import Decoder
from .modeling.families import family_of
from .modeling.stock import stock_class
from .slicing.stock_form import StockForm


def export_stock(model: PreTrainedModel) -> PreTrainedModel:
    """
    Builds a model of a stock class (`LlamaForCausalLM`, ...) that computes the same function and needs no code of this
    package.

    Args:
        model (`PreTrainedModel`):
            A causal language model of a sliced class, without shortcuts or projections. It does not change.

    Returns:
        `PreTrainedModel`: in evaluation mode, with its own weights on the same device and in the same dtype. Its
        `hidden_size` is the width, plus one for families with LayerNorms.

    Raises:
        ValueError: the model is not of a sliced class, has shortcuts or projections, or no class can hold this width.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from optimum_slicegpt import SliceGPTConfig
        >>> sizes = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes))
        >>> tokens = {"input_ids": torch.arange(96).view(4, 24)}
        >>> config = SliceGPTConfig(sparsity=0.4, round_to=4, architecture="sliced", dataset=[tokens])
        >>> stock = export_stock(model.compress(config))
        >>> type(stock).__name__, stock.config.hidden_size
        ('LlamaForCausalLM', 28)
    """
    check_exportable(model)
    form = StockForm(Decoder(model), _exported_size(model.config))
    form.settle()
    if model.config.slicegpt is not None:
        sizes = {"hidden_size": model.config.original_hidden_size, "widths": model.config.widths}
        form.model.config.slicegpt = sizes | model.config.slicegpt | {"architecture": "stock"}
    with torch.no_grad():
        for parameter in form.model.parameters():
            parameter.data = parameter.data.clone()
    return form.model


def check_exportable(model: PreTrainedModel) -> None:
    """
    Checks that [`export_stock`] can export a model. `meta` tensors are enough for this check.

    Raises:
        ValueError: the model is not of a sliced class, has shortcuts or projections, or no class can hold this width.
    """
    config = model.config
    if not hasattr(config, "original_hidden_size"):
        what = "it is of a stock class already" if is_sliced(config) else "it is no sliced model"
        raise ValueError(
            f"Cannot export model_type={config.model_type!r}: {what}. SliceGPTConfig(architecture='sliced') makes "
            "models that can be exported."
        )
    if not hasattr(model, family_of(config).head):
        raise ValueError(f"Cannot export a {type(model).__name__}: load the checkpoint with AutoModelForCausalLM.")
    refused = f"Cannot export this {config.model_type} model"
    if config.shortcuts:
        raise ValueError(
            f"{refused}: shortcuts={config.shortcuts}, and no stock class has linear layers on its residual "
            "connections. Slice the dense model with SliceGPTConfig(rotation='shared')."
        )
    if config.embedding_size is not None:
        raise ValueError(
            f"{refused}: embedding_size={config.embedding_size}, embeddings and head keep their width, and no stock "
            "class has projections between them and the stream. Slice the dense model with embeddings='auto'."
        )
    if config.intermediate_sizes is not None:
        raise ValueError(
            f"{refused}: intermediate_sizes holds {min(config.intermediate_sizes)} to "
            f"{max(config.intermediate_sizes)}, and no stock class has MLPs that differ in size. Slice the dense "
            "model with SliceGPTConfig(schedule='uniform')."
        )
    size, family = _exported_size(config), family_of(config)
    if stock_class(family, config, size) is None:
        sizes = range(1, config.original_hidden_size + 1)
        fitting = sorted(
            (each for each in sizes if stock_class(family, config, each)), key=lambda each: abs(each - size)
        )
        widths = [each - size + config.hidden_size for each in fitting[:2]]
        raise ValueError(
            f"{refused} of width {config.hidden_size}: no class of transformers holds hidden_size={size}. Slice to a "
            f"width that fits; the nearest: {', '.join(map(str, widths))}."
        )


def _exported_size(config) -> int:
    """Returns the `hidden_size` of an export. With LayerNorms it takes a dimension more, for the mean."""
    return config.hidden_size + family_of(config).layer_norm
