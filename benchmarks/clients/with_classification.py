"""Puts classification heads on the model: forward, backward, saved and loaded again."""

import tempfile

import torch
from contract import arguments, write
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from use import load, sequences


def head(kind, folder, ids) -> str:
    """Trains a few steps on sequences of two lengths, checks what is saved, and returns the loss before and after."""
    torch.manual_seed(0)
    model, found = kind.from_pretrained(folder, num_labels=3, dtype=torch.float32, output_loading_info=True)
    assert all(name.startswith("score.") for name in found["missing_keys"]), found["missing_keys"]
    body = load(folder).base_model.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in model.base_model.state_dict().items())

    padding = model.config.pad_token_id or 0
    model.config.pad_token_id = padding
    ids = ids.clone()
    ids[0, 20:] = padding
    inputs = {"input_ids": ids, "attention_mask": (ids != padding).long()}
    labels = torch.arange(len(ids)) % 3
    if kind is AutoModelForTokenClassification:
        labels = labels[:, None].repeat(1, ids.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses

    model.eval()
    with tempfile.TemporaryDirectory() as saved, torch.no_grad():
        model.save_pretrained(saved)
        loaded = kind.from_pretrained(saved).eval()
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    return f"{type(model).__name__}, loss {losses[0]:.2f} to {losses[-1]:.2f}"


def main():
    args = arguments()
    ids = sequences(args.reference)[:4, :32]
    checks = {
        "sequences": head(AutoModelForSequenceClassification, args.model, ids),
        "tokens": head(AutoModelForTokenClassification, args.model, ids),
    }
    write(args.output, {"checks": checks}, "torch", "transformers")


if __name__ == "__main__":
    main()
