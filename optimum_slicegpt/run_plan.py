"""What a run will take, told before it starts: memory, disk, passes over the weights, and roughly its time."""

import time
from collections import Counter
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .configuration import SliceGPTConfig
from .modeling.families import family_of
from .modeling.weights import Writer
from .refit import AXES_TOKENS
from .rotation import ROWS_AT_ONCE
from .sizes import blocks, product_size
from .widths import SlicePlan


LIBRARIES = 500 * 2**20
"""Bytes of resident memory once everything is imported."""

TRIED_STRENGTHS = 5
"""Factorizations for a regression: of the strengths that are tried, and of the one that is taken."""

PROBE = 1024
"""Rows and columns of the matrices whose products tell how fast this machine is."""


@dataclass(frozen=True)
class RunPlan:
    """
    Estimates of what a run takes.

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
    seconds: float

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        plan: SlicePlan,
        config: SliceGPTConfig,
        tokens: int,
        tokens_per_batch: int,
        max_memory: int | None = None,
    ) -> "RunPlan":
        """
        Args:
            model (`PreTrainedModel`): the dense model; `meta` tensors will do.
            plan ([`SlicePlan`]): what is kept.
            config ([`SliceGPTConfig`]): how to slice.
            tokens (`int`): of the calibration data.
            tokens_per_batch (`int`): of the largest batch.
            max_memory (`int`, *optional*):
                Bytes of activations and moments in memory, where the model is streamed. It is in memory by default.
        """
        run = _Run(model, plan, config, tokens, tokens_per_batch)
        streaming, dense = max_memory is not None, sum(each.nbytes for each in model.parameters())
        after = plan.num_parameters(model)
        written = after * model.dtype.itemsize
        kept = run.activations + run.moments
        if streaming:
            weights = {"weights of a layer or a table": run.weights_at_once}
        else:
            weights = {"dense and sliced weights": dense + written}
        flops = run.flops()
        return cls(
            passes=run.passes,
            parameters_before=model.num_parameters(),
            parameters_after=after,
            bytes_read=(len(run.passes) if streaming else 1) * dense,
            bytes_written=written,
            bytes_beside=2 * run.state + run.moments + max(0, run.activations - max_memory) if streaming else 0,
            bytes_per_step=run.state if streaming else 0,
            memory={
                "libraries": LIBRARIES,
                **weights,
                "activations and moments": min(kept, max_memory) if streaming else kept,
                "a batch in a layer": run.batch,
                "matrices of a step": run.matrices,
            },
            flops=flops,
            seconds=sum(count / _flops_per_s(dtype, config.device) for dtype, count in flops.items()),
        )


class _Run:
    """What the estimates are made of, in bytes and in floating point operations."""

    def __init__(self, model, plan, config, tokens, tokens_per_batch):
        self.model, self.plan, self.config, self.tokens = model, plan, config, tokens
        self.family = family_of(model.config)
        self.dtype = getattr(torch, config.dtype) if config.dtype else model.dtype
        self.beyond = config.refit or config.metric != "none" or not plan.shortcuts
        self.fisher, self.measured = config.metric == "fisher", not plan.shortcuts or config.metric != "none"
        self.measured |= self.beyond and not config.refit
        self.few = min(tokens, AXES_TOKENS[config.metric] * plan.hidden_size) if self.measured else 0
        self.width, self.sites = max(plan.widths), len(plan.widths)
        self.layers = model.config.num_hidden_layers
        first = next(layer for _, layer, _ in blocks(model))
        self.layer_bytes = sum(each.nbytes for each in first.parameters())
        self.fits = list(self._fits()) if config.refit else []
        self.inner = max(self._writer_inputs())
        stream = plan.hidden_size * self.dtype.itemsize
        self.state = tokens * stream * (2 if config.refit else 1) + 3 * plan.hidden_size**2 * 8
        # Both streams; what the dense layer makes of the one; what writers read.
        self.activations = (
            tokens * (stream * 4 + self.inner * self.dtype.itemsize) if config.refit else tokens * stream
        )
        self.activations += self.few * stream * (self.layers if self.fisher else 1)
        self.moments = self.sites * plan.hidden_size**2 * 8 * (2 if self.fisher else 1) if self.measured else 0
        self.batch = tokens_per_batch * (2 * self.inner + 4 * plan.hidden_size) * self.dtype.itemsize

    @property
    def passes(self):
        before = ["second moments of all sites"] if self.measured else []
        return [*before, *(["gradients"] if self.fisher else []), "slicing"]

    def _writer_inputs(self):
        for _, layer, block in blocks(self.model):
            yield sum(Writer(layer, name).weight.shape[-2] for name in block.writers)

    def _fits(self):
        """Numbers of inputs and outputs of each regression."""
        size = self.plan.hidden_size
        for _, layer, block in blocks(self.model):
            yield from [(self.width, size)] * len(block.reads)
            if not block.keeps_width:
                yield sum(Writer(layer, name).weight.shape[-2] for name in block.writers), self.width
        yield self.width, size

    @property
    def weights_at_once(self):
        tables = [each for each in (self.model.get_input_embeddings(), self.model.get_output_embeddings())]
        table = max(each.weight.nbytes for each in tables) * (1 if self.plan.tied else 2)
        layer = self.layer_bytes * (2 + (self.dtype.itemsize > self.model.dtype.itemsize) * 2)
        return max(table, layer)

    @property
    def matrices(self):
        size = self.plan.hidden_size
        axes = 7 * size**2
        rows = ROWS_AT_ONCE * (size + self.width) + 2 * size**2
        fits = (5 * inputs**2 + 4 * inputs * outputs for inputs, outputs in self.fits)
        return 8 * max(axes, rows, *fits, 0)

    def flops(self):
        """By dtype."""
        size, tokens = self.plan.hidden_size, self.tokens
        products = product_size(self.model, self.plan.tied)
        head = self.model.config.vocab_size * size
        dense = 2 * (products([size] * self.sites, shortcuts=False) - head)
        ours = 2 * (products(self.plan.widths, self.plan.inner, self.plan.shortcuts) - head)
        passes = dense + ours if self.config.refit else 0 if self.beyond else ours
        forward = tokens * passes + self.few * (dense * (4 if self.fisher else 1) + 6 * head * self.fisher)
        moments = 2 * size**2 * self.sites * (self.few * (1 + self.fisher) if self.measured else tokens)
        sums = sum(tokens * (inputs**2 + 2 * inputs * outputs) for inputs, outputs in self.fits)
        solved = sum(TRIED_STRENGTHS * inputs**3 / 3 + 4 * inputs**2 * outputs for inputs, outputs in self.fits)
        axes = 12 * size**3 * (self.sites if self.plan.shortcuts else 1)
        composed = 2 * size * (self.model.num_parameters() - head * self.plan.tied)
        double = solved + axes + composed
        flops = Counter({str(self.dtype).removeprefix("torch."): forward})
        return dict(flops + Counter({"float32": moments + sums, "float64": double}))


def _flops_per_s(dtype: str, device: str | None) -> float:
    device = torch.device(device or "cpu")
    matrix = torch.ones(PROBE, PROBE, dtype=getattr(torch, dtype), device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * PROBE**3 / min(seconds)
