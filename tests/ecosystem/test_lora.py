"""LoRA on sliced models, through PEFT, without arguments of ours."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sliced_models import sliced_model, stock_model
from tiny import TINY, relative_error, tokens


@pytest.mark.parametrize("name", TINY)
def test_default_targets_resolve(name):
    adapted = get_peft_model(sliced_model(name), LoraConfig(task_type="CAUSAL_LM"))
    assert any("lora_A" in parameter for parameter, _ in adapted.named_parameters())


@pytest.mark.parametrize("name", TINY)
def test_all_linear_finds_the_shortcuts_and_not_the_head(name):
    adapted = get_peft_model(sliced_model(name), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    names = [parameter for parameter, _ in adapted.named_parameters() if "lora_A" in parameter]
    assert any("attn_shortcut" in entry for entry in names)
    assert not any("lm_head" in entry for entry in names)


def test_lora_lowers_the_loss_with_the_base_frozen(tmp_path):
    model = sliced_model()
    frozen = {key: value.clone() for key, value in model.state_dict().items()}
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", modules_to_save=["lm_head"])
    adapted = get_peft_model(model, settings)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = adapted(tokens(8), labels=tokens(8)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3

    base = {key.replace(".base_layer", ""): value for key, value in adapted.base_model.model.state_dict().items()}
    untouched = [key for key in frozen if key in base]
    assert len(untouched) > 10
    assert all(torch.equal(base[key], frozen[key]) for key in untouched)

    adapted.eval()
    expected = adapted(tokens()).logits
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(sliced_model(), tmp_path).eval()
    assert torch.equal(reloaded(tokens()).logits, expected)
    merged = adapted.merge_and_unload()
    assert type(merged).__name__ == "SlicedLlamaForCausalLM"
    assert relative_error(merged(tokens()).logits, expected) < 1e-5


def test_a_stock_model_stays_one_and_keeps_its_tie(tmp_path):
    adapted = get_peft_model(stock_model(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    expected = adapted.eval()(tokens()).logits
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(stock_model(), tmp_path).eval()
    assert torch.equal(reloaded(tokens()).logits, expected)
    merged = adapted.merge_and_unload()
    assert type(merged).__name__ == "LlamaForCausalLM" and merged.lm_head.weight is merged.model.embed_tokens.weight
    assert relative_error(merged(tokens()).logits, expected) < 1e-5
