"""Short runs of `recover`, and what they change."""

import torch
from sliced_models import sliced_model, stock_model

from optimum_slicegpt import RecoveryConfig


TEXTS = [" ".join(f"w{(start + step * step) % 7 + 3}" for step in range(60)) for start in range(20)]
QUICK = {"dataset": TEXTS, "seqlen": 16, "held_out": 4, "max_steps": 6, "eval_steps": 2, "batch_size": 2}
QUICK |= {"gradient_accumulation": 2, "learning_rate": 1e-2, "bf16": False, "use_cpu": True, "patience": None}
QUICK |= {"distill": False, "own_tokens": 0, "lora_rank": 32, "lora_alpha": 10}


def quick_config(**kwargs):
    return RecoveryConfig(**QUICK | kwargs)


def fresh_model(name="llama", dtype=torch.float32, sparsity=0.3):
    """Slices a tiny model that has the vocabulary of the tiny tokenizer."""
    return sliced_model(name, dtype, sizes={"vocab_size": 98}, sparsity=sparsity)


def fresh_stock_model():
    """Slices a tiny model that has the vocabulary of the tiny tokenizer, to a stock class."""
    return stock_model(sizes={"vocab_size": 98})


def copy_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed_names(model, before):
    """Returns the names of weights that differ from those of a copy."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def same_weights(model, other):
    return not changed_names(model, other.state_dict())


def turns(*contents):
    """Makes a conversation in which user and assistant take turns."""
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
