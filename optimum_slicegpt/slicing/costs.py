"""What a run costs, by what takes it: bytes in memory, and floating point operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ..linalg.axes import SEARCH_STEPS
from ..linalg.regression import POSITIVE_STEPS, token_stride
from ..linalg.ridge import JUDGED_OUTPUTS
from ..modeling.contexts import choose_dtype
from ..modeling.decoder import Decoder
from ..planning.sizes import most_inputs, product_size
from ..planning.speed import flops_per_s
from .methods.refine import STEP_TOKENS, steps_of
from .statistics import AXES_TOKENS


if TYPE_CHECKING:
    from ..configuration import SliceGPTConfig
    from ..planning.widths import SlicePlan


FACTORISATIONS = 5
"""
Factorisations for a regression, or what takes as long: one or two for the strength of its ridge, one for the fit, one
for the costs of neurons, and an inverse.
"""


@dataclass(frozen=True)
class Work:
    """
    Work of one kind on matrices of one size.

    Args:
        kind (`str`): one of [`planning.speed.KINDS`].
        size (`int`): rows and columns of its matrices.
        dtype (`str`): of its matrices.
        flops (`float`): floating point operations.
    """

    kind: str
    size: int
    dtype: str
    flops: float

    @property
    def counted_dtype(self) -> str:
        """The dtype in which it is done: sums over tokens, and what follows, in float32 at least."""
        return "float32" if self.kind == "sums" and self.dtype in ("float16", "bfloat16") else self.dtype


class Costs:
    """
    The parts of an estimate.

    Args:
        model (`PreTrainedModel`), plan ([`SlicePlan`]), config ([`SliceGPTConfig`]), tokens (`int`),
            tokens_per_batch (`int`), groups (`int`): see [`estimate.estimate_run`].

    Attributes:
        state (`int`): bytes of the state between two layers.
        activations (`int`): bytes of all streams, while layers are sliced.
        moments (`int`): bytes of the second moments of all sites.
        kept (`int`): bytes of activations and moments, at most.
        batch (`int`): bytes that a batch takes in a layer.
        head (`int`): operations of the head on a token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: SlicePlan,
        config: SliceGPTConfig,
        tokens: int,
        tokens_per_batch: int,
        groups: int,
    ):
        self.dense, self.plan, self.refit = Decoder(model), plan, config.refit
        self.turned = config.orientation == "random" or plan.stock_size != plan.hidden_size
        self.tokens, self.groups = tokens, groups
        self.dtype = choose_dtype(config.dtype, model.dtype, torch.device(config.device or "cpu"))
        self.fisher = config.metric == "fisher"
        costs = config.schedule == "energy" and plan.neurons is not None
        self.measured = self.fisher or costs or not (plan.shortcuts or plan.whole)
        self.per_block = plan.shortcuts and not self.fisher  # Moments are those of the stream that passes.
        self.size, self.width, self.sites = plan.hidden_size, max(plan.widths), len(plan.widths)
        self.measured_tokens = min(tokens, AXES_TOKENS * self.size) if self.measured else 0
        self.inputs = [
            sum(writer.weight.shape[-2] for writer in block.writers().values()) for block in self.dense.blocks()
        ]
        self.fits = list(self._fits()) if config.refit else []
        self.steps = steps_of(config, self.dense, tokens)

        stream, inputs = self.size * self.dtype.itemsize, max(self.inputs) * self.dtype.itemsize
        matrix = 8 * self.size**2
        self.state = tokens * stream * (2 if config.refit else 1) + 3 * matrix
        # A refit keeps both streams, the dense one before a layer and after its blocks; then, in place of the one
        # before, what the writers of attention read.
        read = max((size for size, _ in self._read_once()), default=0) * self.dtype.itemsize
        self.activations = tokens * (3 * stream + max(stream, read) if config.refit else stream)
        self.activations += tokens * 2 * stream * self.dense.family.post_norms  # What goes into the norms behind them.
        self.moments = self.sites * matrix * (self.measured + self.fisher)
        measuring = self.moments + tokens * stream
        measuring += self.measured_tokens * stream * (model.config.num_hidden_layers if self.fisher else 1)
        # Of axes that all sites share, second moments are forgotten; per block, and of gradients, they stay.
        self.kept = max(measuring, self.activations + self.sites * matrix * (self.fisher * (1 + plan.shortcuts)))
        self.batch = tokens_per_batch * (2 * inputs + 4 * stream)
        self.head = 2 * self.dense.config.vocab_size * self.size

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

    def _read_once(self):
        """Yields the blocks whose writers' inputs are kept by a refit, and the number of these inputs."""
        for inputs, block in zip(self.inputs, self.dense.blocks(), strict=True):
            if not block.has_dense_mlp and not block.keeps_width:
                yield inputs, block

    @property
    def trained_weights(self):
        """Weights in all MLPs of the sliced model, if they are trained."""
        dense, widths = self.dense, self.plan.widths
        blocks = [block for block in dense.blocks() if block.has_dense_mlp]
        if not self.steps:
            return 0
        readers = sum(reader.weight.numel() for reader in dense.mlp_readers(blocks[0].index))
        writer = dense.mlp_writer(blocks[0].index).weight.numel()
        kept = (self.plan.neurons or dense.num_neurons) / dense.num_neurons / self.size
        return kept * sum(readers * widths[block.site] + writer * widths[block.site + 1] for block in blocks)

    def work(self) -> dict[str, list[Work]]:
        """Returns all work of every phase of a run, one entry for each kind, size and dtype."""
        narrow, phases = str(self.dtype).removeprefix("torch."), {}
        dtypes = {"forward": narrow, "sums": narrow, "factorisation": "float32"}
        for phase, parts in self._phases().items():
            found = Counter()
            for kind, size, flops in chain.from_iterable(parts):
                found[kind, size, dtypes.get(kind, "float64")] += flops
            phases[phase] = [Work(*key, flops) for key, flops in found.items() if flops]
        return phases

    def _phases(self):
        tied, narrow = (self.plan.embeddings == name for name in ("tied", "narrow"))
        head, composed = self.head * self.size, 2 * self.size * self.dense.model.num_parameters()
        composed -= (2 if tied else 1) * head
        if self.plan.whole and not self.turned:  # What is written stays as it is, and readers are fitted.
            readers = [reader.weight.numel() for block in self.dense.blocks() for reader in block.readers().values()]
            composed, head = 2 * self.size * sum(readers) * self.refit, head * (self.refit and not narrow)
        return {
            "Measuring": [self._measuring_work()],
            "Deciding": [self._deciding_work()],
            "Slicing": [self._slicing_work(), [("product", self.size, composed)], self._fitting_work(self.fits[:-1])],
            "Head": [[("product", self.size, head)], self._fitting_work(self.fits[-1:])],
        }

    @property
    def _forward_flops(self):
        """Operations of the layers on a token, of the dense and of the sliced model."""
        products = product_size(self.dense, self.plan.embeddings)
        dense = 2 * products([self.size] * self.sites, shortcuts=False) - self.head
        narrower = 1 if self.plan.embeddings == "tied" else self.plan.widths[-1] / self.size
        sliced = 2 * products(self.plan.widths, self.plan.neurons, self.plan.shortcuts) - self.head * narrower
        return dense, sliced

    def _measuring_work(self):
        dense, _ = self._forward_flops
        yield "forward", self.size, self.measured_tokens * (4 * dense + 3 * self.head if self.fisher else dense)
        yield "sums", self.size, self.measured_tokens * 2 * self.size**2 * self.sites * (1 + self.fisher)

    def _deciding_work(self):
        size, shared = self.size, not (self.plan.shortcuts or self.plan.whole)
        yield "eigenvectors", size, 12 * size**3 * shared
        if self.fisher and shared:  # Axes that all sites share are searched for.
            deleted = size - self.width
            yield "product", size, SEARCH_STEPS * self.sites * (4 * size**2 * deleted + 8 * size * deleted**2)

    def _slicing_work(self):
        size, (dense, sliced) = self.size, self._forward_flops
        yield "forward", size, self.tokens * (dense + 2 * sliced if self.refit else sliced if self.per_block else 0)
        for _, block in self._read_once() if self.refit else ():
            rows = sum(reader.weight.shape[-2] for reader in block.readers().values())
            yield "forward", size, -2 * self.tokens * rows * self.plan.widths[block.site]
        yield "forward", size, 2 * self.tokens * size * self.width * len(self.inputs) * self.refit
        yield "forward", size, 6 * self.steps * STEP_TOKENS * self.trained_weights
        yield "sums", size, self.tokens * 2 * size**2 * self.sites * self.per_block
        yield "eigenvectors", size, 12 * size**3 * self.sites * self.plan.shortcuts
        if self.dense.family.post_norms and self.plan.embeddings == "narrow":  # The table is measured, too.
            yield "sums", size, self.head * size

    def _fitting_work(self, fits):
        """Yields the work of regressions, of which numbers of inputs and outputs are given."""
        most = most_inputs(self.dense) if fits else 0
        for inputs, outputs in fits:
            yield "sums", inputs, self.tokens * inputs**2 / token_stride(inputs, most)
            yield "factorisation", inputs, FACTORISATIONS * inputs**3 / 3 + 2 * inputs**2 * outputs
            judged = outputs + (1 + self.groups) * min(outputs, JUDGED_OUTPUTS)
            yield "product", inputs, 2 * inputs**2 * (judged + POSITIVE_STEPS * (outputs == 1))


def seconds_for(work: Iterable[Work], device: torch.device) -> float | None:
    """Returns how long work takes on a device; `None` where the device is not here."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    return sum(each.flops / flops_per_s(each.kind, each.size, each.dtype, str(device)) for each in work)


def estimate_phases(
    model: PreTrainedModel, plan: SlicePlan, config: SliceGPTConfig, tokens: int, groups: int
) -> dict[str, float]:
    """
    Estimates the seconds of each phase of a run, in order, on a device that is here.

    Args:
        model (`PreTrainedModel`), plan ([`SlicePlan`]), config ([`SliceGPTConfig`]), tokens (`int`), groups (`int`):
            see [`estimate.estimate_run`].
    """
    work, device = Costs(model, plan, config, tokens, 0, groups).work(), torch.device(config.device or "cpu")
    return {phase: seconds_for(parts, device) for phase, parts in work.items()}
