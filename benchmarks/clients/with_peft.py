"""
Adapts the model with PEFT: LoRA and DoRA on all linear layers, LoRA on the embedding with the head, prompt tuning.

An adapter lowers the loss and gives the same logits when it is loaded again. Merged and saved, the model is an
ordinary checkpoint of the same class, with the same tie of embedding and head. Of any tied model, merging adds an
adapter that both share to their one matrix twice: so its scale is halved before.
"""

import tempfile

import torch
from contract import arguments, write
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from use import difference, is_tied, load, sequences


LINEAR = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear"}
BOTH_ENDS = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["embed_tokens", "lm_head"]}
ADAPTERS = {
    "LoRA": LoraConfig(**LINEAR),
    "DoRA": LoraConfig(**LINEAR, use_dora=True),
    "LoRA on embedding and head": LoraConfig(**BOTH_ENDS, ensure_weight_tying=True),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


def train(model, ids, rate) -> str:
    """Trains a few steps, and returns the loss before and after."""
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=rate)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f}"


def adapt(folder: str, adapter, ids) -> str:
    """Trains an adapter, checks what is saved of it and what it is merged into, and returns what happened."""
    torch.manual_seed(0)
    base = load(folder)
    kind, tied = type(base), is_tied(base)
    model = get_peft_model(base, adapter)
    prompt = isinstance(adapter, PromptTuningConfig)
    found = train(model, ids, 1e-3 if prompt else 3e-4)
    model.eval()
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        assert difference(PeftModel.from_pretrained(load(folder), saved).eval(), model, ids) == 0
    if prompt:
        return found

    with tempfile.TemporaryDirectory() as saved, torch.no_grad():
        adapted = model(ids).logits
        halved = tied and adapter.ensure_weight_tying
        for layer in model.modules():
            if halved and isinstance(layer, LoraLayer):
                layer.scaling["default"] /= 2
        merged = model.merge_and_unload()
        merged.save_pretrained(saved)
        loaded = load(saved)
        assert type(loaded) is kind and is_tied(loaded) == tied
        off = (loaded(ids).logits - adapted).abs().max().item()
        assert off < 1e-2, off
    return f"{found}, merged within {off:.0e}" + " at half the scale" * halved + ", tied" * tied


def main():
    args = arguments()
    ids = sequences(args.reference)[:2, :48]
    checks = {name: adapt(args.model, adapter, ids) for name, adapter in ADAPTERS.items()}
    write(args.output, {"checks": checks}, "peft", "torch", "transformers")


if __name__ == "__main__":
    main()
