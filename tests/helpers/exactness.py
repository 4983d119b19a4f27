"""Models on which slicing can be compared exactly: norms that round in float64, dimensions that nothing writes to."""

import functools

import torch
from torch import nn

from optimum_slicegpt.modeling.decoder import Decoder
from optimum_slicegpt.modeling.weights import Writer


def in_float32(norm):
    """Tells whether a norm is of Llama's kind, which computes in float32 whatever the dtype."""
    name = type(norm).__name__
    return name.endswith(("RMSNorm", "LayerNorm")) and not isinstance(norm, nn.RMSNorm | nn.LayerNorm)


def with_float64_norms(model):
    """Lets norms that compute in float32 compute in float64, which takes their rounding out of a comparison."""
    offset = Decoder(model).family.gain_offset

    def forward(norm, x):
        dtype, x = x.dtype, x.double()
        if type(norm).__name__.endswith("LayerNorm"):
            x = x - x.mean(-1, keepdim=True)
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-5))
        x = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        return (x * (norm.weight + offset) if "weight" in norm._parameters else x).to(dtype)

    for module in model.modules():
        if in_float32(module):
            module.forward = functools.partial(forward, module)
    return model


def confine_writers(model, rank):
    """Projects every writer onto one random subspace of `rank` dimensions (orthogonal to ones, for LayerNorm)."""
    generator = torch.Generator().manual_seed(5)
    basis = torch.randn(model.config.hidden_size, rank, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(basis - basis.mean(0))[0]
    projection = basis @ basis.T
    decoder = Decoder(model)
    for writer in [*decoder.tables, *(writer for block in decoder.blocks() for writer in block.writers().values())]:
        writer.weight.copy_(writer.weight @ projection)
        if writer.bias is not None:
            writer.bias.copy_(writer.bias @ projection)


def layers_of(model):
    return Decoder(model).layers


def writer_of(layer, model):
    """Returns the weight that a layer's MLP writes to the stream with."""
    return Writer(layer, Decoder(model).family.mlp_writer)
