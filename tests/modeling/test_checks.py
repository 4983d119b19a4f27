"""Which adapters of PEFT count, and which are gone."""

import pytest
from peft import LoraConfig, get_peft_model
from tiny import build

from optimum_slicegpt.modeling.checks import check_without_adapters


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
