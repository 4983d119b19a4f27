"""
Norms fused into their neighbours, so that what is left of a norm commutes with rotations (SliceGPT, section 3.2).

Fusion and rotation are one linear map on each side of a weight. Nothing here changes a module.
"""

import torch
from torch import Tensor

from .modeling.weights import Reader
from .rotation import compose


def reader_map(norm: torch.nn.Module, gain_offset: float, rotation: Tensor, scale: float) -> Tensor:
    """
    What a reader's weight is multiplied by, from the right: `W @ diag(gain) @ Q / scale`.

    Args:
        norm (`torch.nn.Module`): the norm that the reader reads. Its gain is its weight, if it has one.
        gain_offset (`float`): what the norm adds to its weight, see [`families.Family`].
        rotation (`torch.Tensor` of shape `(D, k)`, float64): axes kept at the site, in columns.
        scale (`float`): factor by which the stream is scaled at the site.

    Returns:
        `torch.Tensor` of shape `(D, k)`, float64.
    """
    gain = getattr(norm, "weight", None)
    if gain is not None:
        rotation = (gain.to(rotation) + gain_offset)[:, None] * rotation
    return rotation / scale


def reader_bias(reader: Reader, norm: torch.nn.Module) -> Tensor | None:
    """
    A reader's bias once it has taken in the norm's: `b + W @ beta`.

    Returns:
        `torch.Tensor` of shape `(out,)`, float64, or `None` where neither has a bias.
    """
    beta = getattr(norm, "bias", None)
    bias = None if reader.bias is None else reader.bias.double()
    if beta is None:
        return bias
    added = compose(reader.weight, beta.to(reader.weight.device).double()[:, None], torch.float64).squeeze(-1)
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
