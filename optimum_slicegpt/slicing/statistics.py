"""
Statistics of the dense model: one pass over its layers, and one back for gradients.

Second moments are of the stream as its readers see it, each token divided by its root mean square: otherwise the few
tokens whose activations are massive would outweigh all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..linalg.moments import add_second_moment_, root_mean_square
from ..linalg.products import mirror_
from ..modeling.contexts import injected, inputs_seen, placed


if TYPE_CHECKING:
    from ..modeling.decoder import Decoder
    from .parts import Part
    from .run import Computation, Run
    from .state import Statistics


AXES_TOKENS = 8
"""Statistics are taken on so many tokens for every dimension of the stream."""


def measured_tokens(run: Computation) -> list[int]:
    """
    Counts the tokens of each of this process's batches on which statistics are taken: they are the first ones of every
    kind of text, so many that all together are [`AXES_TOKENS`] for every dimension.
    """
    share = AXES_TOKENS * run.dense.config.hidden_size / max(1, run.num_tokens)
    limits = [ceil(share * place.total) - place.first for place in run.places]
    return [min(max(0, limit), place.count) for limit, place in zip(limits, run.places, strict=True)]


def new_moment(run: Computation) -> Tensor:
    """Returns an empty second moment `(D, D)`, float64, on the device that computes."""
    size = run.dense.config.hidden_size
    return torch.zeros(size, size, dtype=torch.float64, device=run.device)


def sum_moments(run: Computation, moments: Iterable[Tensor], site: int, of: str = "Activations") -> None:
    """
    Adds up second moments over all processes, and mirrors them, in place.

    Args:
        run ([`Computation`]): whose moments they are.
        moments (`Iterable[torch.Tensor]`): of sites that follow each other.
        site (`int`): the first of these sites.
        of (`str`): what they are of.

    Raises:
        ValueError: they are not finite.
    """
    for number, moment in enumerate(moments, site):
        run.sum_(moment, number, of)
        mirror_(moment)


def measuring_steps(run: Run, parts: Iterable[Part]) -> list[Callable[[], None]]:
    """
    Returns the steps that fill `run.state.statistics` with what parts need, none if they need nothing.

    Args:
        run ([`run.Run`]): just started, or resumed.
        parts (`Iterable[Part]`): the parts of the method.
    """
    needs = {need for part in parts for need in part.needs}
    if not needs:
        return []
    counts, statistics = measured_tokens(run), run.state.statistics
    if not run.done:  # A run that resumes has them in its statistics, as far as it needs them still.
        statistics.streams = [[stream for stream, count in zip(run.state.x, counts, strict=True) if count]]
    return DensePass(run, statistics, counts, gradients="gradients" in needs, costs="costs" in needs).steps()


class DensePass:
    """
    The steps that measure a dense model.

    Args:
        run ([`Computation`]): whose dense model it is; says where and in which dtype layers compute.
        statistics ([`Statistics`]):
            Filled step by step. `streams` holds the stream of the first site, of the batches that are measured.
        counts (`list[int]`, *optional*): number of tokens, the first ones, that are measured of each batch; 0 where
            the batch is left out. By default all.
        gradients (`bool`): whether to measure second moments of the gradient of the summed next-token loss.
        costs (`bool`): whether to measure what neurons add to the stream.
    """

    def __init__(
        self,
        run: Computation,
        statistics: Statistics,
        counts: list[int] | None = None,
        *,
        gradients: bool = False,
        costs: bool = False,
    ):
        self.run, self.statistics, self._gradients, self._costs = run, statistics, gradients, costs
        counts = counts or [place.count for place in run.places]
        self._measured = [position for position, count in enumerate(counts) if count]
        self._counts = [counts[position] for position in self._measured]

    def steps(self) -> list[Callable[[], None]]:
        layers = range(len(self.run.dense.layers))
        forward = [partial(self.forward, index) for index in layers]
        if not self._gradients:
            return forward
        return [*forward, self.loss, *(partial(self.backward, index) for index in reversed(layers))]

    def forward(self, index: int) -> None:
        """Computes the stream after a layer, and second moments after each block, before the first layer as well."""
        run, statistics, layer = self.run, self.statistics, self.run.dense.layers[index]
        family, mlp = run.dense.family, run.dense.blocks_of(index)[-1]
        watched = [layer.get_submodule(family.mlp_writer), mlp.post_norm] if self._costs else []
        first = [new_moment(run)] if index == 0 else []
        moments = [*first, *(new_moment(run) for _ in family.blocks)]
        after, energies = [], []
        with run.loaded(run.dense.layer_name(index)), self._phase(), placed(layer, run.device, run.dtype):
            for batch, count, value in zip(self._batches, self._counts, statistics.streams[-1], strict=True):
                stream = value.to(run.device)
                with inputs_seen([each for each in watched if each is not None]) as seen:
                    streams = batch.layer_streams(run.dense, index, stream)
                streams = [stream] * len(first) + run.dense.site_streams(streams, stream)
                if self._costs:
                    neurons, *divided = (each.view(*stream.shape[:2], -1) for each in (*seen.values(), streams[-1]))
                    neurons = batch.tokens(neurons)[:count].float() * batch.place.weight
                    for each in divided:  # by a norm behind the MLP, and by those that read the stream
                        neurons = neurons / root_mean_square(batch.tokens(each)[:count])
                    energies.append(neurons.double().square().sum(0))
                for moment, each in zip(moments, streams, strict=True):
                    tokens = batch.tokens(each)[:count]
                    add_second_moment_(moment, tokens, batch.place.weight / root_mean_square(tokens))
                after.append(run.keep(streams[-1]))
            sum_moments(run, moments, len(statistics.moments))
            if self._costs:
                rows, gain = run.dense.mlp_writer(index).weight.double(), mlp.post_gain
                rows = rows if gain is None else rows * gain.to(rows)
                costs = sum(energies) * rows.square().sum(-1)
                run.sum_(costs, len(statistics.moments) + len(moments) - 1)
                statistics.costs.append(run.keep(costs))
        statistics.moments += map(run.keep, moments)
        statistics.streams.append(after)
        if not self._gradients:
            del statistics.streams[0]
            if index == len(run.dense.layers) - 1:
                statistics.streams.clear()

    def loss(self) -> None:
        """Computes the gradient of the loss with respect to the stream at the last site."""
        run, statistics, moment = self.run, self.statistics, new_moment(self.run)
        around = *run.dense.around_layers, run.dense.head_name
        with run.loaded(*around), self._phase(), placed(run.dense.modules(*around), run.device, run.dtype):
            measured = zip(self._batches, self._counts, statistics.streams.pop(), strict=True)
            for batch, count, value in measured:
                stream = value.to(run.device)
                gradient = loss_gradient(run.dense, batch.inputs, stream)
                self._add_gradient(moment, batch, count, gradient, stream)
                statistics.gradient.append(run.keep(gradient))
            sum_moments(run, [moment], run.dense.num_sites - 1, "Gradients")
        statistics.gradients.append(run.keep(moment))

    def backward(self, index: int) -> None:
        """Computes the gradient before a layer, and its second moments there and after each block except the last."""
        run, statistics, layer = self.run, self.statistics, self.run.dense.layers[index]
        family = run.dense.family
        moments, before = [new_moment(run) for _ in family.blocks], []
        with run.loaded(run.dense.layer_name(index)), self._phase(), placed(layer, run.device, run.dtype):
            measured = zip(self._batches, self._counts, statistics.streams.pop(), statistics.gradient, strict=True)
            for batch, count, value, above in measured:
                start = value.to(run.device).detach().requires_grad_()
                with torch.enable_grad():
                    *inside, after = batch.layer_streams(run.dense, index, start)
                    gradients = torch.autograd.grad(after, [start, *inside], above.to(run.device))
                streams = [start, *run.dense.site_streams(inside, start)]
                gradients = run.dense.site_streams(gradients, start)
                for moment, stream, gradient in zip(moments, streams, gradients, strict=True):
                    self._add_gradient(moment, batch, count, gradient, stream)
                before.append(run.keep(gradients[0]))
            sum_moments(run, moments, index * len(family.blocks), "Gradients")
        statistics.gradients[:0] = map(run.keep, moments)
        statistics.gradient = before if index else []

    @property
    def _batches(self):
        return [self.run.batches[position] for position in self._measured]

    def _add_gradient(self, moment, batch, count, gradient, stream):
        gradient, stream = (batch.tokens(each)[:count] for each in (gradient, stream))
        add_second_moment_(moment, gradient, batch.place.weight * root_mean_square(stream))

    def _phase(self):
        return self.run.phase("gradients" if self._gradients else "second moments")


def loss_gradient(dense: Decoder, inputs: dict[str, Tensor], stream: Tensor) -> Tensor:
    """
    Computes the gradient of the summed next-token loss with respect to the stream at the last site.

    Args:
        dense ([`Decoder`]): the dense model, whose tables, final norm and head are where the stream is.
        inputs (`dict[str, torch.Tensor]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`, on that device.
        stream (`torch.Tensor` of shape `(B, T, D)`): at the last site.

    Returns:
        `torch.Tensor` of shape `(B, T, D)`.
    """
    gradients = []
    for row, sequence in enumerate(stream.detach().split(1)):  # One sequence at a time, because its logits are large.
        tokens = {key: value[row] for key, value in inputs.items()}
        targets = tokens["input_ids"][1:]
        if "attention_mask" in tokens:
            targets = targets.masked_fill(tokens["attention_mask"][1:] == 0, -100)
        with torch.enable_grad():
            sequence.requires_grad_()
            with injected(dense, sequence):  # No layer is computed, so none needs the mask.
                logits = dense.model(input_ids=tokens["input_ids"][None], use_cache=False).logits[0, :-1].float()
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            gradients += torch.autograd.grad(loss, sequence)
    return torch.cat(gradients)
