import re

import pytest
from more_families import MORE, POST_NORM
from tiny import ALL, HIDDEN, TINY, build
from transformers import AutoConfig

from optimum_slicegpt.modeling.families import FAMILIES, NOT_SLICEABLE, family_of
from optimum_slicegpt.modeling.weights import Reader, Writer


def test_every_family_has_a_tiny_model():
    assert {name.split("-")[0] for name in ALL} == set(FAMILIES)


@pytest.mark.parametrize("name", [name for name in TINY | POST_NORM if name not in MORE])
def test_table_names_every_weight_on_the_stream_exactly_once(name):
    """No other size of a tiny model equals the hidden size, so each weight that has it touches the stream."""
    model = build(name, intermediate_size=40, tie_word_embeddings=False)
    family = family_of(model.config)
    body = model.base_model.get_submodule(family.body)
    named = [Reader(model, family.head).weight, *(Writer(body, table).weight for table in family.embeddings)]
    norms = [getattr(body, family.final_norm)]
    for layer in getattr(body, family.layers):
        for block in (each.of(layer) for each in family.blocks):
            named += [Writer(layer, writer).weight for writer in block.writers]
            named += [Reader(layer, reader).weight for _, readers in block.reads for reader in readers]
            names = [norm for norm, _ in block.reads] + [block.post_norm]
            norms += [layer.get_submodule(norm) for norm in names if norm is not None]
    named += [norm.weight for norm in norms if hasattr(norm, "weight")]
    assert all(weight.shape[-1] == HIDDEN for weight in named)
    places = [weight.data_ptr() for weight in named]
    assert len(places) == len(set(places))
    touching = [
        parameter.data_ptr()
        for key, parameter in model.named_parameters()
        if HIDDEN in parameter.shape and not key.endswith("bias")
    ]
    assert set(touching) == set(places)


@pytest.mark.parametrize("model_type", NOT_SLICEABLE)
def test_families_that_cannot_be_sliced_are_refused_with_the_reason(model_type):
    message = f"model_type='{model_type}': {NOT_SLICEABLE[model_type]}. Supported: llama, mistral"
    with pytest.raises(ValueError, match=re.escape(message)):
        family_of(AutoConfig.for_model(model_type))


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="model_type='bert': no table row .* Supported: llama"):
        family_of(AutoConfig.for_model("bert"))


@pytest.mark.parametrize(
    ("model_type", "key", "value", "message"),
    [
        ("opt", "do_layer_norm_before", False, "do_layer_norm_before=False, and a norm after the block"),
        ("opt", "_remove_final_layer_norm", True, "_remove_final_layer_norm=True, and without a final norm"),
        ("gpt2", "add_cross_attention", True, "add_cross_attention=True, and cross-attention is a third block"),
        ("falcon", "alibi", True, "alibi=True, and its attention biases are scaled by a hidden size"),
        ("falcon", "parallel_attn", False, "parallel_attn=False, and its sequential layers drop out"),
        ("nanochat", "tie_word_embeddings", True, "tie_word_embeddings=True, and its final norm, which comes before"),
        ("nemotron_h", "tie_word_embeddings", True, "tie_word_embeddings=True, and its class ties nothing"),
        ("hyperclovax", "use_post_norm", True, "use_post_norm=True, and a norm after the block"),
    ],
)
def test_variants_that_cannot_be_sliced(model_type, key, value, message):
    with pytest.raises(ValueError, match=f"Cannot slice this {model_type} model: {message}"):
        family_of(AutoConfig.for_model(model_type, **{key: value}))
