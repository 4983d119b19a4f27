"""
Second moments of activations, in float64.

References:
    Ashkboos et al. (2024), SliceGPT, https://arxiv.org/abs/2401.15024: the second moment (equation 8), the cost of
    float32 (table 4).
"""

import torch
from torch import Tensor

from .products import add_products_, upper_strips


def add_second_moment_(total: Tensor, x: Tensor, factor: Tensor | None = None) -> None:
    """
    Adds xᵀx to a running sum, on and above the diagonal. Once all tokens are added, [`products.mirror_`] fills in
    the rest.

    The product of one batch is taken in float32 at least, the sum over batches in float64: axes from sums in float32
    cost perplexity.

    Args:
        total (`torch.Tensor` of shape `(D, D)`, float64): the running sum, changed in place.
        x (`torch.Tensor` of shape `(tokens, D)`): the stream at a site.
        factor (`torch.Tensor` of shape `(tokens, 1)`, *optional*): multiplies each token of x.
    """
    if factor is not None:
        x = (x * factor).to(torch.bfloat16 if x.dtype == torch.bfloat16 else factor.dtype)
    add_products_(upper_strips(total), x)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Returns a dtype for what becomes of activations in `dtype`: float16 may be too narrow for it, bfloat16 never."""
    return torch.float32 if dtype == torch.float16 else dtype


def root_mean_square(stream: Tensor, eps: float = 1e-6) -> Tensor:
    """
    Computes the root mean square of each token, by which norms divide: `√(mean(x²) + eps)`.

    Args:
        stream (`torch.Tensor` of shape `(..., D)`): in any dtype.
        eps (`float`, defaults to 1e-6): of the norm.

    Returns:
        `torch.Tensor` of shape `(..., 1)`, in float32 at least; more than 0.
    """
    if stream.dtype in (torch.float16, torch.bfloat16):
        stream = stream.float()
    return (stream.square().mean(-1, keepdim=True) + eps).sqrt()
