"""What is sliced, and which adapters of PEFT count."""

import pytest
from peft import LoraConfig, get_peft_model
from sliced_models import model_of_one_width, stock_model
from tiny import build
from transformers import AutoModelForCausalLM

from optimum_slicegpt.modeling.checks import check_sliceable, check_sliced, check_without_adapters, is_sliced


def test_sliced_models_are_known_by_their_record():
    for model in (stock_model(), model_of_one_width("llama", 28)):  # the second has no record, and is of our class
        assert is_sliced(model.config)
        check_sliced(model, "slice it")
        with pytest.raises(ValueError, match="This model is already sliced; slice the dense model"):
            check_sliceable(model)


def test_a_stock_model_without_its_record_is_a_dense_one(tmp_path):
    model = stock_model()
    del model.config.slicegpt
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not is_sliced(loaded.config)
    check_sliceable(loaded)
    with pytest.raises(ValueError, match="This LlamaForCausalLM is not sliced: .* has no 'slicegpt'; slice it."):
        check_sliced(loaded, "slice it")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"]),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5]),
    ],
    ids=["lora", "saved-modules", "tokens"],
)
def test_adapters_count_until_they_are_merged(config):
    model = build("llama")
    adapted = get_peft_model(model, config)
    for each in (model, adapted):
        with pytest.raises(
            ValueError, match=r"The model carries PEFT adapters; call merge_and_unload\(\) first, then"
        ):
            check_without_adapters(each, "The model", "slice")
    merged = adapted.merge_and_unload()
    merged.peft_config = {}  # PEFT may leave this behind
    check_without_adapters(merged, "The model", "slice")
