"""Sums a loss over positions, a few at a time: float32 logits of a whole sequence can be gigabytes."""

from collections.abc import Callable

from torch import Tensor


POSITIONS = 256
"""Number of positions whose logits are in float32 at a time."""

UNLABELLED = -100
"""Label of a position whose loss does not count, as transformers has it."""


def sum_over_positions(loss: Callable[..., Tensor], *tensors: Tensor, dim: int = 0) -> Tensor:
    """
    Sums a loss over positions, `POSITIONS` of them at a time.

    Args:
        loss (`Callable`): takes a chunk of every tensor, and returns the sum over its positions.
        tensors (`torch.Tensor`): for example logits and targets. Along `dim` all are equally long.
        dim (`int`, defaults to 0): axis of the positions.

    Returns:
        `torch.Tensor`: the sum of what `loss` returns.

    Examples:
        >>> import torch
        >>> logits, targets = torch.eye(1000), torch.arange(1000) // 2  # the first prediction is right
        >>> sum_over_positions(lambda logits, targets: (logits.argmax(-1) != targets).sum(), logits, targets)
        tensor(999)
    """
    chunks = zip(*(tensor.split(POSITIONS, dim) for tensor in tensors), strict=True)
    return sum(loss(*chunk) for chunk in chunks)
