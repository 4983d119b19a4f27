"""
The table of families: which modules of each read and write the residual stream.

A family is a `model_type` of transformers. Its row holds names, never code: the forward of a sliced decoder layer
([`modeling_sliced.SlicedLayerMixin`]), the fusion of norms, the rotation and the parameter count all read this table
and know no other names.
"""

from dataclasses import replace

from .family import Family, StockClass


FAMILIES: dict[str, Family] = {
    # RMSNorm
    "llama": Family(
        narrower=(
            StockClass(by_heads=True),  # LlamaConfig refuses other sizes. Mistral computes the same and accepts all.
            StockClass(
                "mistral",
                changes=(("sliding_window", None),),
                requires=(("attention_bias", False), ("mlp_bias", False)),
            ),
        ),
    ),
    "mistral": Family(),
    # vLLM, MLX-LM and llama.cpp divide the hidden size of a Qwen2 by its heads, whatever its head_dim says.
    "qwen2": Family(
        narrower=(
            StockClass(
                "llama", by_heads=True, changes=(("attention_bias", True),), requires=(("use_sliding_window", False),)
            ),
        ),
    ),
    "qwen3": Family(),
    "smollm3": Family(),
    "phi3": Family(
        attn_readers=("self_attn.qkv_proj",),
        attn_dropout="resid_attn_dropout",
        mlp_readers=("mlp.gate_up_proj",),
        mlp_dropout="resid_mlp_dropout",
        # Its configuration compares the factors of other kinds with hidden_size / heads.
        narrower=(StockClass(requires=(("rope_parameters.rope_type", "default"),), only="transformers, vLLM"),),
    ),
    "granite": Family(residual_multiplier="residual_multiplier", narrower=(StockClass(only="transformers, vLLM"),)),
    "gemma": Family(gain_offset=1.0),
    # RMSNorm, mixtures of experts
    "mixtral": Family(
        mlp_readers=("mlp.gate", "mlp.experts.gate_up_proj"),
        mlp_writer="mlp.experts.down_proj",
        moe=True,
        narrower=(StockClass(multiple_of=8, only="transformers, vLLM, llama.cpp"),),  # for the grouped product
    ),
    "qwen3_moe": Family(
        mlp_readers=("mlp.gate", "mlp.experts.gate_up_proj"),
        mlp_writer="mlp.experts.down_proj",
        moe=True,
        narrower=(StockClass(multiple_of=8),),
        requires=(
            ("mlp_only_layers", [], "layers without experts have other readers and writers"),
            ("decoder_sparse_step", 1, "layers without experts have other readers and writers"),
        ),
    ),
    # LayerNorm
    "olmo": Family(layer_norm=True, norm_eps=1e-5, narrower=(StockClass(only="transformers"),)),
    "cohere": Family(mlp_norm=None, layer_norm=True, parallel=True, narrower=(StockClass(only="transformers, vLLM"),)),
    "starcoder2": Family(
        mlp_readers=("mlp.c_fc",),
        mlp_writer="mlp.c_proj",
        layer_norm=True,
        narrower=(StockClass(only="transformers"),),
    ),
    "nemotron": Family(
        mlp_readers=("mlp.up_proj",),
        layer_norm=True,
        gain_offset=1.0,
        narrower=(StockClass(only="transformers, vLLM, MLX-LM"),),
    ),
    "phi": Family(
        final_norm="final_layernorm",
        attn_writer="self_attn.dense",
        attn_dropout="resid_dropout",
        mlp_norm=None,
        mlp_readers=("mlp.fc1",),
        mlp_writer="mlp.fc2",
        mlp_dropout="resid_dropout",
        layer_norm=True,
        parallel=True,
        narrower=(StockClass(only="transformers"),),
        variants=(("qk_layernorm", True, {"narrower": ()}),),
    ),
    "gpt_neox": Family(
        embeddings=("embed_in",),
        final_norm="final_layer_norm",
        attn="attention",
        attn_readers=("attention.query_key_value",),
        attn_writer="attention.dense",
        attn_dropout="post_attention_dropout",
        mlp_readers=("mlp.dense_h_to_4h",),
        mlp_writer="mlp.dense_4h_to_h",
        mlp_dropout="post_mlp_dropout",
        layer_norm=True,
        narrower=(),
        variants=(("use_parallel_residual", True, {"parallel": True}),),
    ),
    "stablelm": Family(
        mlp_dropout="dropout",
        layer_norm=True,
        narrower=(),
        variants=(("use_parallel_residual", True, {"parallel": True, "mlp_norm": None}),),
    ),
    "opt": Family(
        body="decoder",
        embeddings=("embed_tokens", "embed_positions"),
        final_norm="final_layer_norm",
        attn_norm="self_attn_layer_norm",
        attn_writer="self_attn.out_proj",
        attn_dropout="dropout",
        mlp=("fc1", "activation_fn", "fc2"),
        mlp_norm="final_layer_norm",
        mlp_readers=("fc1",),
        mlp_writer="fc2",
        mlp_dropout="dropout",
        neurons_key="ffn_dim",
        layer_norm=True,
        narrower=(),
        size_keys=("hidden_size", "word_embed_proj_dim"),
        requires=(
            ("do_layer_norm_before", True, "a norm after the block acts in the original basis of the residual stream"),
            ("_remove_final_layer_norm", False, "without a final norm the head reads the stream unnormalised"),
        ),
    ),
    "gpt2": Family(
        layers="h",
        embeddings=("wte", "wpe"),
        final_norm="ln_f",
        attn="attn",
        attn_norm="ln_1",
        attn_readers=("attn.c_attn",),
        attn_writer="attn.c_proj",
        mlp_norm="ln_2",
        mlp_readers=("mlp.c_fc",),
        mlp_writer="mlp.c_proj",
        neurons_key="n_inner",
        layer_norm=True,
        narrower=(),
        restores_shape=True,
        size_keys=("n_embd",),
        requires=(("add_cross_attention", False, "cross-attention is a third block of its layers"),),
    ),
    "falcon": Family(
        layers="h",
        embeddings=("word_embeddings",),
        final_norm="ln_f",
        attn="self_attention",
        attn_readers=("self_attention.query_key_value",),
        attn_writer="self_attention.dense",
        attn_dropout="hidden_dropout",
        mlp_norm=None,
        mlp_readers=("mlp.dense_h_to_4h",),
        mlp_writer="mlp.dense_4h_to_h",
        mlp_dropout="hidden_dropout",
        neurons_key="ffn_hidden_size",
        layer_norm=True,
        narrower=(),
        parallel=True,
        returns_tuple=True,
        variants=(("num_ln_in_parallel_attn", 2, {"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"}),),
        requires=(
            ("alibi", False, "its attention biases are scaled by a hidden size that slicing changes"),
            ("parallel_attn", True, "its sequential layers drop out their attention's output with another rate"),
        ),
    ),
}
"""Rows of the families that can be sliced, by `model_type`."""

POST_NORM = "its post-norms act in the original basis of the residual stream, which does not commute with a rotation"
PER_CHANNEL = "it scales the residual stream channel by channel, which does not commute with a rotation"
NOT_SLICEABLE: dict[str, str] = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"), POST_NORM),
    **dict.fromkeys(("gemma4", "gemma4_text", "olmo2", "olmo3", "flex_olmo", "glm4", "exaone4"), POST_NORM),
    "openai-gpt": POST_NORM,
    "doge": PER_CHANNEL,
}
"""Families that computational invariance excludes, and the reasons."""


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
        reason = NOT_SLICEABLE.get(model_type, "no table row describes where it reads and writes the residual stream")
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


def num_neurons(config) -> int:
    """Returns the number of neurons in each MLP of a dense model."""
    # A configuration of GPT-2 may hold None, for four times the hidden size.
    return getattr(config, family_of(config).neurons_key) or 4 * config.hidden_size


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
