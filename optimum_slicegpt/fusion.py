"""
Norms fused into their neighbours, so that what is left of a norm commutes with rotations (SliceGPT, section 3.2).

Fusion and rotation are one linear map on each side of a weight. Nothing here changes a module.
"""

import torch
from torch import Tensor


def norm_gain_and_bias(norm: torch.nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Gain and bias of a norm, each `(D,)`, or `None` where it has none."""
    return getattr(norm, "weight", None), getattr(norm, "bias", None)


def reader_map(norm: torch.nn.Module, rotation: Tensor, scale: float) -> Tensor:
    """
    What a reader's weight is multiplied by, from the right: `W @ diag(gain) @ Q / scale`.

    Args:
        norm (`torch.nn.Module`): the norm that the reader reads.
        rotation (`torch.Tensor` of shape `(D, k)`, float64): axes kept at the site, in columns.
        scale (`float`): factor by which the stream is scaled at the site.

    Returns:
        `torch.Tensor` of shape `(D, k)`, float64.
    """
    gain, _ = norm_gain_and_bias(norm)
    if gain is not None:
        rotation = gain.to(rotation)[:, None] * rotation
    return rotation / scale


def reader_bias(linear: torch.nn.Module, norm: torch.nn.Module) -> Tensor | None:
    """
    A reader's bias once it has taken in the norm's: `b + W @ beta`.

    Returns:
        `torch.Tensor` of shape `(out,)`, float64, or `None` where neither has a bias.
    """
    _, beta = norm_gain_and_bias(norm)
    bias = None if linear.bias is None else linear.bias.double()
    if beta is None:
        return bias
    added = linear.weight.double() @ beta.to(linear.weight.device).double()
    return added if bias is None else bias + added


def writer_map(rotation: Tensor, scale: float, centred: bool) -> Tensor:
    """
    What a writer's output is multiplied by, from the right: `(I - 11ᵀ/D) @ Q * scale`.

    Args:
        rotation (`torch.Tensor` of shape `(D, k)`, float64): axes kept at the site that is written to, in columns.
        scale (`float`): factor by which the stream is scaled at the site.
        centred (`bool`):
            Whether the mean over the hidden axis is subtracted: for LayerNorm networks only, whose norms would do it.
            An RMSNorm network is not centred, or it would not be the same network.

    Returns:
        `torch.Tensor` of shape `(D, k)`, float64.
    """
    if centred:
        rotation = rotation - rotation.mean(0, keepdim=True)
    return rotation * scale
