"""Estimates what a run will take before it starts: memory, disk, passes over the weights, and roughly its time."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ..configuration import SliceGPTConfig
from ..linalg.axes import SEARCH_STEPS
from ..linalg.moments import ROWS_AT_ONCE
from ..linalg.regression import POSITIVE_STEPS, token_stride
from ..linalg.ridge import JUDGED_OUTPUTS
from ..modeling.decoder import Decoder
from ..planning.sizes import flops_per_token, most_inputs, product_size
from .methods.refine import STEP_TOKENS, number_of_steps
from .statistics import AXES_TOKENS


if TYPE_CHECKING:
    from ..planning.widths import SlicePlan


LIBRARIES = 500 * 2**20
"""Bytes of resident memory once everything is imported."""

FACTORISATIONS = 5
"""
Factorisations for a regression, or what takes as long: one or two for the strength of its ridge, one for the fit, one
for the costs of neurons, and an inverse.
"""

PROBE = 1024
"""Rows and columns of the matrices by whose products the speed of this machine is measured."""

TRIALS = 10
"""Products of which the fastest counts, if they take no longer than a second."""


@dataclass(frozen=True)
class RunEstimate:
    """
    The estimated cost of a run.

    Args:
        passes (`list[str]`): what each pass over the weights is for.
        parameters_before (`int`): of the dense model.
        parameters_after (`int`): of the sliced one.
        bytes_read (`int`): of the checkpoint, in all passes.
        bytes_written (`int`): of the sliced checkpoint.
        bytes_beside (`int`): of files that are needed while streaming, at most.
        bytes_per_step (`int`): of the state that streaming saves after each layer.
        memory (`dict[str, int]`): bytes of memory at the peak, by what takes them.
        flops (`dict[str, float]`): floating point operations, by the dtype in which they are done.
        forwards (`float`): as many operations, in forwards of the dense model over the text.
        seconds (`float`): for these, as fast as this machine multiplies matrices. Reading and writing come on top.
    """

    passes: list[str]
    parameters_before: int
    parameters_after: int
    bytes_read: int
    bytes_written: int
    bytes_beside: int
    bytes_per_step: int
    memory: dict[str, int]
    flops: dict[str, float]
    forwards: float
    seconds: float


def estimate_run(
    model: PreTrainedModel,
    plan: SlicePlan,
    config: SliceGPTConfig,
    tokens: int,
    tokens_per_batch: int,
    max_memory: int | None = None,
    groups: int = 1,
) -> RunEstimate:
    """
    Estimates what a run will take.

    Args:
        model (`PreTrainedModel`): the dense model; `meta` tensors will do.
        plan ([`SlicePlan`]): what is kept.
        config ([`SliceGPTConfig`]): how to slice.
        tokens (`int`): of the calibration data.
        tokens_per_batch (`int`): of the largest batch.
        max_memory (`int`, *optional*):
            Bytes of activations and moments in memory, where the model is streamed. It is in memory by default.
        groups (`int`, defaults to 1): kinds of text.
    """
    costs = _Costs(model, plan, config, tokens, tokens_per_batch, groups)
    streaming, dense = max_memory is not None, sum(each.nbytes for each in model.parameters())
    after = plan.num_parameters(model)
    written = after * model.dtype.itemsize
    if streaming:
        weights = {"weights of a layer or a table": costs.weights_at_once}
    else:
        weights = {"dense and sliced weights": dense + written}
    flops = costs.flops()
    return RunEstimate(
        passes=costs.passes,
        parameters_before=model.num_parameters(),
        parameters_after=after,
        bytes_read=(len(costs.passes) if streaming else 1) * dense,
        bytes_written=written,
        bytes_beside=2 * costs.state + costs.moments + max(0, costs.activations - max_memory) if streaming else 0,
        bytes_per_step=costs.state if streaming else 0,
        memory={
            "libraries": LIBRARIES,
            **weights,
            "activations and moments": min(costs.kept, max_memory) if streaming else costs.kept,
            "a batch in a layer": costs.batch,
            "matrices of a step": costs.matrices,
        },
        flops=flops,
        forwards=sum(flops.values()) / (tokens * flops_per_token(Decoder(model))),
        seconds=sum(count / _flops_per_s(dtype, config.device) for dtype, count in flops.items()),
    )


class _Costs:
    """The parts of an estimate, in bytes and in floating point operations."""

    def __init__(self, model, plan, config, tokens, tokens_per_batch, groups):
        self.dense, self.plan, self.refit = Decoder(model), plan, config.refit
        self.tokens, self.groups = tokens, groups
        self.dtype = getattr(torch, config.dtype) if config.dtype else model.dtype
        self.fisher = config.metric == "fisher"
        self.measured = self.fisher or not plan.shortcuts
        self.size, self.width, self.sites = plan.hidden_size, max(plan.widths), len(plan.widths)
        self.measured_tokens = min(tokens, AXES_TOKENS * self.size) if self.measured else 0
        self.inputs = [
            sum(writer.weight.shape[-2] for writer in block.writers().values()) for block in self.dense.blocks()
        ]
        self.fits = list(self._fits()) if config.refit else []
        self.steps = number_of_steps(config.refine, tokens) if config.refit and not self.dense.family.moe else 0

        stream, inputs = self.size * self.dtype.itemsize, max(self.inputs) * self.dtype.itemsize
        matrix = 8 * self.size**2
        self.state = tokens * stream * (2 if config.refit else 1) + 3 * matrix
        # A refit keeps both streams, the dense one before a layer and after its blocks, and later what writers read.
        self.activations = tokens * (max(4 * stream, 3 * stream + inputs) if config.refit else stream)
        self.activations += tokens * 2 * stream * self.dense.family.post_norms  # What goes into the norms behind them.
        self.moments = self.sites * matrix * (self.measured + self.fisher)
        measuring = self.moments + tokens * stream
        measuring += self.measured_tokens * stream * (model.config.num_hidden_layers if self.fisher else 1)
        # Of axes that all sites share, second moments are forgotten; per block, and of gradients, they stay.
        self.kept = max(measuring, self.activations + self.sites * matrix * (self.fisher * (1 + plan.shortcuts)))
        self.batch = tokens_per_batch * (2 * inputs + 4 * stream)

    @property
    def passes(self):
        before = ["second moments of all sites"] * self.measured + ["gradients"] * self.fisher
        return [*before, "slicing"]

    def _fits(self):
        """Yields the numbers of inputs and outputs of each regression."""
        reader = self.width, self.size
        for inputs, block in zip(self.inputs, self.dense.blocks(), strict=True):
            yield from [reader] * len(block.names.reads)
            if not block.keeps_width:
                yield inputs, self.width
            if self.dense.family.post_norms:
                yield self.width, 1
        yield reader

    @property
    def _mlp_weights(self):
        """Weights in all MLPs of the sliced model."""
        dense, widths = self.dense, self.plan.widths
        readers = sum(reader.weight.numel() for reader in dense.mlp_readers(0))
        writer = dense.mlp_writer(0).weight.numel()
        kept = (self.plan.neurons or dense.num_neurons) / dense.num_neurons / self.size
        sites = [block.site for block in dense.blocks() if dense.family.mlp_writer in block.names.writers]
        return kept * sum(readers * widths[site] + writer * widths[site + 1] for site in sites)

    @property
    def weights_at_once(self):
        table = max(self.dense.tables[0].weight.nbytes, self.dense.head.weight.nbytes)
        layer = sum(parameter.nbytes for parameter in self.dense.layers[0].parameters())
        cast = self.dtype.itemsize > self.dense.model.dtype.itemsize
        return max(table * (1 if self.plan.embeddings == "tied" else 2), layer * (4 if cast else 2))

    @property
    def matrices(self):
        axes = 7 * self.size**2
        rows = ROWS_AT_ONCE * (self.size + self.width) + 2 * self.size**2
        # A regression keeps sums over the tokens that are fitted, and over the held-out ones of each kind. While it
        # chooses the strength of its ridge, it has copies of half the size as well; then all sums become one.
        sums = 1 + self.groups
        fits = (inputs * (1.5 * sums * inputs + (2 + sums) * outputs) for inputs, outputs in self.fits)
        return int(8 * max(axes, rows, *fits, 0))

    def flops(self) -> dict[str, float]:
        head = 2 * self.dense.config.vocab_size * self.size
        products = product_size(self.dense, self.plan.embeddings)
        dense = 2 * products([self.size] * self.sites, shortcuts=False) - head
        sliced = 2 * products(self.plan.widths, self.plan.neurons, self.plan.shortcuts) - head
        forward = self.tokens * (dense + sliced if self.refit else 0 if self.measured else sliced)
        forward += self.measured_tokens * (4 * dense + 3 * head if self.fisher else dense)
        moments = 2 * self.size**2 * self.sites
        moments *= self.measured_tokens * (1 + self.fisher) if self.measured else self.tokens
        if self.dense.family.post_norms and self.plan.embeddings == "narrow":  # The table is measured, too.
            moments += head * self.size
        forward += 2 * self.tokens * sum(inputs * outputs for inputs, outputs in self.fits)
        forward += 6 * self.steps * STEP_TOKENS * self._mlp_weights
        most = most_inputs(self.dense)
        sums = self.tokens * sum(inputs**2 / token_stride(inputs, most) for inputs, _ in self.fits)
        sums += sum(FACTORISATIONS * inputs**3 / 3 + 2 * inputs**2 * outputs for inputs, outputs in self.fits)
        solved = sum(
            2 * inputs**2 * (outputs + (1 + self.groups) * min(outputs, JUDGED_OUTPUTS))
            for inputs, outputs in self.fits
        )
        solved += sum(POSITIVE_STEPS * 2 * inputs**2 for inputs, outputs in self.fits if outputs == 1)
        axes = 12 * self.size**3 * (self.sites if self.plan.shortcuts else 1)
        if self.fisher and not self.plan.shortcuts:  # Axes that all sites share are searched for.
            deleted = self.size - self.width
            axes += SEARCH_STEPS * self.sites * (4 * self.size**2 * deleted + 8 * self.size * deleted**2)
        composed = 2 * self.size * self.dense.model.num_parameters() - head * self.size * (
            self.plan.embeddings == "tied"
        )
        flops = Counter({str(self.dtype).removeprefix("torch."): forward})
        return dict(flops + Counter({"float32": moments + sums, "float64": solved + axes + composed}))


def _flops_per_s(dtype: str, device: str | None) -> float:
    device = torch.device(device or "cpu")
    matrix = torch.ones(PROBE, PROBE, dtype=getattr(torch, dtype), device=device)
    seconds = []
    while len(seconds) < TRIALS and sum(seconds) < 1:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * PROBE**3 / min(seconds)
