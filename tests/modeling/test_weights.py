"""Whoever holds a weight on the stream, it is seen and set in one way."""

import pytest
import torch
from tiny import tokens
from torch import nn
from transformers.pytorch_utils import Conv1D

from optimum_slicegpt.modeling.weights import Reader, Writer


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_dim = 6
        self.gate_up_proj = nn.Parameter(torch.randn(3, 4, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 4))


PARENT = {
    "linear": lambda reads: nn.Linear(6, 4) if reads else nn.Linear(4, 6),
    "conv1d": lambda reads: Conv1D(4, 6) if reads else Conv1D(6, 4),
}


@pytest.mark.parametrize("kind", PARENT)
@pytest.mark.parametrize("side", [Reader, Writer])
def test_a_layer_computes_with_what_it_was_given(side, kind):
    reads = side is Reader
    layer = PARENT[kind](reads)
    seen = side(nn.ModuleDict({"layer": layer}), "layer")
    assert seen.weight.shape == (4, 6)
    weight, bias = torch.randn(4, 5), torch.randn(4 if reads else 5)
    seen.set(weight, bias, like=seen.weight)
    x = torch.randn(2, 3, 5 if reads else 4)
    torch.testing.assert_close(layer(x), x @ (weight.T if reads else weight) + bias)
    assert layer.weight.is_contiguous()
    assert "5" in repr(layer) and "6" not in repr(layer)


def test_a_table_of_embeddings_is_a_writer():
    table = nn.Embedding(97, 6)
    seen = Writer(nn.ModuleDict({"table": table}), "table")
    seen.resize(5)
    seen.set(torch.ones(97, 5), like=torch.empty(0, dtype=torch.float16))
    assert table(tokens()).shape == (2, 24, 5) and table.embedding_dim == 5 and table.weight.dtype == torch.float16


def test_experts_are_parameters():
    parent = nn.ModuleDict({"experts": Experts()})
    reader, writer = Reader(parent, "experts.gate_up_proj"), Writer(parent, "experts.down_proj")
    assert reader.weight.shape == writer.weight.shape == (3, 4, 6)
    assert reader.bias is writer.bias is None
    reader.resize(5)
    writer.resize(5)
    experts = parent["experts"]
    assert (experts.gate_up_proj.shape, experts.down_proj.shape, experts.hidden_dim) == ((3, 4, 5), (3, 5, 4), 5)


def test_a_reader_gets_a_bias_only_if_it_had_none():
    parent = nn.ModuleDict({"without": nn.Linear(6, 4, bias=False), "with": nn.Linear(6, 4)})
    before = parent["with"].bias
    for name in parent:
        Reader(parent, name).resize(5, new_bias=True)
    assert parent["without"].bias.shape == (4,) and parent["with"].bias is before
