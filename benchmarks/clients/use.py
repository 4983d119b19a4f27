"""What the scripts that train, quantize, export or merge a model share: loading it, and sums on its logits."""

import math

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def load(folder, dtype=torch.float32, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **kwargs).eval()


def sequences(reference_file: str) -> torch.Tensor:
    """Reads the reference's tokens for perplexity, one row for each sequence."""
    return torch.from_numpy(np.load(reference_file)["test"]).long()


@torch.no_grad()
def perplexity(model, rows: torch.Tensor) -> float:
    """Returns exp of the mean loss over sequences of equal length."""
    losses = [model(input_ids=row, labels=row).loss.item() for row in rows.split(1)]
    return math.exp(sum(losses) / len(losses))


@torch.no_grad()
def difference(one, other, ids: torch.Tensor) -> float:
    """Returns the largest difference between the logits of two models."""
    return (one(ids).logits.float() - other(ids).logits.float()).abs().max().item()


def is_tied(model) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight
