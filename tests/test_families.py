import pytest
import torch
from tiny import HIDDEN, TINY, build
from transformers import AutoConfig

from optimum_slicegpt.modeling.families import FAMILIES, NOT_SLICEABLE, family_of


def test_every_family_has_a_tiny_model():
    assert {name.split("-")[0] for name in TINY} == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_table_names_every_weight_on_the_stream_exactly_once(name):
    """No other size of a tiny model equals the hidden size, so each weight that has it touches the stream."""
    model = build(name, intermediate_size=40, tie_word_embeddings=False)
    family = family_of(model.config)
    body = model.base_model.get_submodule(family.body)
    named = [model.get_submodule(family.head), getattr(body, family.final_norm)]
    named += [body.get_submodule(table) for table in family.embeddings]
    for layer in getattr(body, family.layers):
        for block in family.blocks(model.config):
            names = [*block.writers, *(entry for norm, readers in block.reads for entry in (norm, *readers))]
            named += [layer.get_submodule(entry) for entry in names]
    assert len(named) == len(set(map(id, named)))
    touching = [module for module in model.modules() if HIDDEN in getattr(module, "weight", torch.empty(0)).shape]
    assert set(map(id, touching)) == set(map(id, named))


@pytest.mark.parametrize("model_type", NOT_SLICEABLE)
def test_post_norm_families_are_refused_with_the_reason(model_type):
    with pytest.raises(ValueError, match=f"model_type='{model_type}': its post-norms .* Supported: llama, mistral"):
        family_of(AutoConfig.for_model(model_type))


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="model_type='bert': no table row .* Supported: llama"):
        family_of(AutoConfig.for_model("bert"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("do_layer_norm_before", False, "do_layer_norm_before=False, and a norm after the block"),
        ("_remove_final_layer_norm", True, "_remove_final_layer_norm=True, and without a final norm"),
    ],
)
def test_variants_of_opt_that_cannot_be_sliced(key, value, message):
    with pytest.raises(ValueError, match=message):
        family_of(AutoConfig.for_model("opt", **{key: value}))
