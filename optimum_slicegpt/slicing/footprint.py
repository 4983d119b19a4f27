"""What the steps of a run take in memory beside activations; the largest of them counts."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from ..linalg.composition import ROWS_AT_ONCE
from ..linalg.moments import wide
from ..linalg.regression import TOKENS_AT_ONCE, bytes_needed, bytes_of_sums
from .methods.refine import STEP_TOKENS, tokens_of


if TYPE_CHECKING:
    from .costs import Costs


WEIGHTS_AT_ONCE, BATCH = "weights of a layer or a table", "a batch in a layer"
PRODUCTS, AXES, REGRESSION, TRAINING, LOSS = (
    "products with weights",
    "the search for axes",
    "a regression",
    "the training of an MLP",
    "logits and gradients",
)
"""What takes memory in a step, and what a step is for."""


class Footprint:
    """
    Bytes by step.

    Args:
        costs ([`Costs`]): of the run.
        seqlen (`int`): tokens of the longest sequence.
    """

    def __init__(self, costs: Costs, seqlen: int):
        self._costs, self._seqlen = costs, seqlen

    def largest_step(self, place: str | None, without: Collection[str] = ()) -> dict[str, int]:
        """
        Returns what takes memory in the step that needs most.

        Args:
            place (`str`, *optional*): `"host"` or `"device"`, where a step's weights are; they are not counted
                without it.
            without (collection of `str`): kinds of steps that are done elsewhere.
        """
        weights = {"host": self._in_host_memory, "device": self._on_device, None: lambda: (0, 0, 0)}[place]()
        steps = [
            {WEIGHTS_AT_ONCE: at_once, BATCH: self._costs.batch, kind: int(matrices)}
            for at_once, kind, matrices in self._steps(*weights)
            if kind not in without
        ]
        found = max(steps, key=lambda step: sum(step.values()))
        if place is None:
            del found[WEIGHTS_AT_ONCE]
        return found

    def _steps(self, table, tables, layer):
        """Yields the weights that a step has loaded, what it does, and the bytes of its matrices."""
        costs, size = self._costs, self._costs.size
        yield table, PRODUCTS, 8 * (ROWS_AT_ONCE * (size + costs.width) + 2 * size**2)
        yield layer, PRODUCTS, 8 * (ROWS_AT_ONCE * (size + costs.width) + 2 * size**2)
        # Those that all sites share are searched for by gradients, with a history of ten steps.
        searched = costs.fisher and not (costs.plan.shortcuts or costs.plan.whole)
        yield layer, AXES, 8 * (20 if searched else 7) * size**2
        if costs.fits:
            yield layer, REGRESSION, self.regression
            yield table, REGRESSION, self._bytes_of_regression(*costs.fits[-1])
        if costs.steps:
            yield layer, TRAINING, self._training
        if costs.fisher:  # Logits, their logarithms of probabilities and both gradients, in float32.
            yield tables, LOSS, 16 * self._seqlen * costs.dense.config.vocab_size

    @property
    def regression(self) -> int:
        """Bytes of the largest regression."""
        return max((self._bytes_of_regression(*fit) for fit in set(self._costs.fits)), default=0)

    def _bytes_of_regression(self, inputs, outputs):
        # Tokens are collected before their products are taken; the buffers are freed before anything is solved.
        groups, dtype = self._costs.groups, torch.promote_types(self._costs.dtype, torch.float32)
        collected = (1 + groups) * TOKENS_AT_ONCE * (inputs + outputs) * wide(self._costs.dtype).itemsize
        sums = bytes_of_sums(inputs, outputs, groups, dtype)
        return max(sums + collected, bytes_needed(inputs, outputs, groups, dtype))

    @property
    def weights_at_once(self) -> int:
        """Bytes of weights in host memory at a time, while a model is streamed to a device."""
        return max(self._in_host_memory())

    @property
    def _training(self):
        costs = self._costs
        tokens = min(costs.tokens, tokens_of(costs.steps)) * costs.width * (costs.dtype.itemsize + 4)
        weights = 4 * costs.trained_weights / len(costs.dense.layers)  # with gradients and Adam's two averages
        step = STEP_TOKENS * (6 * max(costs.inputs) + 4 * costs.width)
        return tokens + max(tokens, 4 * (weights + step))  # Tokens are there twice while they are sorted.

    def _in_host_memory(self):
        costs = self._costs
        stored, cast = self._tables
        table = max(stored) * (1 if costs.plan.embeddings == "tied" else 2)  # with what it becomes
        layer = max(sum(parameter.nbytes for parameter in layer.parameters()) for layer in costs.dense.layers)
        wider = costs.dtype.itemsize > costs.dense.model.dtype.itemsize
        return table, sum(cast) * costs.fisher, layer * (4 if wider else 2)

    def _on_device(self):
        costs = self._costs
        stored, cast = self._tables
        layer = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in costs.dense.layers)
        return max(stored), sum(cast) * costs.fisher, layer * costs.dtype.itemsize

    @property
    def _tables(self):
        """Bytes of the embedding and of the head, once if they are one, as they are stored and as they compute."""
        weights = {id(each): each for each in (self._costs.dense.tables[0].weight, self._costs.dense.head.weight)}
        stored = [each.nbytes for each in weights.values()]
        return stored, [each.numel() * max(each.itemsize, self._costs.dtype.itemsize) for each in weights.values()]
