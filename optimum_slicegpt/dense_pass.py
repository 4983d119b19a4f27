"""The dense model, layer by layer: the stream at every site, its second moments, and those of the loss gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .assembly import placed
from .modeling.family import Family
from .modeling.weights import Writer
from .rotation import add_second_moment_
from .signals import injected


if TYPE_CHECKING:
    from .walk import Walk


def layer_streams(layer: nn.Module, family: Family, hidden: Tensor, kwargs: dict) -> list[Tensor]:
    """
    The stream after each block of a dense layer, as the layer's own code has it: see [`at_site`].

    Args:
        layer (`nn.Module`): a decoder layer of the dense model.
        hidden (`torch.Tensor` of shape `(B, T, D)`): the stream before the layer.
        kwargs (`dict`): what the layer is called with.

    Returns:
        `list[torch.Tensor]`: one for every block.
    """
    streams = []
    hook = None
    if not family.parallel:  # then the second norm reads what the first block has added to
        norm = layer.get_submodule(family.mlp_norm)
        hook = norm.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    try:
        output = layer(hidden, **kwargs)
    finally:
        if hook is not None:
            hook.remove()
    return [*streams, output[0] if isinstance(output, tuple) else output]


def root_mean_square(stream: Tensor) -> Tensor:
    """Of every token `(..., D)`, as `(..., 1)` in float32 at least: what norms divide by, never 0."""
    if stream.dtype in (torch.float16, torch.bfloat16):
        stream = stream.float()
    return (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def at_site(streams: list[Tensor], family: Family, hidden: Tensor) -> list[Tensor]:
    """Streams, or gradients with respect to them, as `(B, T, D)`, centred where the family's norms would do that."""
    streams = [stream.view_as(hidden) for stream in streams]  # OPT's are flat where its second norm reads them
    return [stream - stream.mean(-1, keepdim=True) for stream in streams] if family.layer_norm else streams


class DensePass:
    """
    One pass over the dense model, layer by layer, which takes second moments at every site, of the stream as its
    readers see it: every token divided by its root mean square. Without that, the few tokens whose activations are
    massive would outweigh all others. For the gradient of the loss, a second pass goes back, which computes each layer
    once more.

    Args:
        walk ([`Walk`]): whose dense model and signals these are; says where and in which dtype layers compute.
        count (`int`): number of batches, from the first, that are measured.
        moments (`dict[str, list]`):
            Filled step by step, with what [`Walk.keep`] makes of `(D, D)` float64 sums over tokens, a list with one
            for every site: `"signal"`, sums of xᵀx, and if the walk's metric wants it `"gradient"`, the same of the
            gradient of the summed next-token loss with respect to x. If the walk shares neurons out among layers,
            `"costs"` has for every layer what its neurons `(neurons,)` add to the stream: the sum of (a |w|)², a the
            activation, in units of the token's root mean square, and w the neuron's row of the writer. Between
            steps, `"inputs"` and `"slopes"` hold the stream before each layer and the gradient where the way back has
            come to, a list of batches each.
    """

    def __init__(self, walk: Walk, count: int, moments: dict[str, list]):
        self.walk, self.moments = walk, moments
        self.signals, self.batches = walk.signals[:count], walk.batches[:count]
        self.gradients, self.shares = walk.config.metric == "fisher", walk.shares_neurons
        if not moments:
            inputs = [[each.hidden for each in self.signals]]
            moments.update(signal=[], gradient=[], costs=[], slopes=[], inputs=inputs)

    def steps(self) -> list[Callable[[], None]]:
        layers = range(len(self.walk.dense_layers))
        forward = [partial(self.forward, index) for index in layers]
        if not self.gradients:
            return forward
        return [*forward, self.loss, *(partial(self.backward, index) for index in reversed(layers))]

    def forward(self, index: int) -> None:
        """Takes the stream through a layer, and its moments before (of the first one) and after each block."""
        walk, layer = self.walk, self.walk.dense_layers[index]
        first = [self.zeros()] if index == 0 else []
        sums = [*first, *(self.zeros() for _ in walk.family.blocks)]
        after, energies = [], []
        with walk.at_hand(walk.layer_name(index)), self.phase(), placed(layer, walk.device, walk.dtype):
            for each, before in zip(self.signals, self.moments["inputs"][-1], strict=True):
                hidden = before.to(walk.device)
                with self.neurons_noted(layer) as neurons:
                    streams = layer_streams(layer, walk.family, hidden, each.layer_kwargs[index])
                streams = [hidden] * len(first) + at_site(streams, walk.family, hidden)
                for active in neurons:
                    active = each.tokens(active.view(*hidden.shape[:2], -1)).float()
                    energies.append((active / root_mean_square(each.tokens(streams[-1]))).double().square().sum(0))
                for total, stream in zip(sums, map(each.tokens, streams), strict=True):
                    add_second_moment_(total, stream, 1 / root_mean_square(stream))
                after.append(walk.keep(streams[-1]))
            walk.add_up(*sums)
            if self.shares:
                rows = Writer(layer, walk.family.mlp_writer).weight.double()
                costs = sum(energies) * rows.square().sum(-1)
                walk.processes.add_up(costs)
                self.moments["costs"].append(walk.keep(costs))
        for site, total in enumerate(sums, len(self.moments["signal"])):
            walk.check_finite(total, site)
        self.moments["signal"] += map(walk.keep, sums)
        self.moments["inputs"].append(after)
        if not self.gradients:
            del self.moments["inputs"][0]

    def loss(self) -> None:
        """Takes the gradient of the loss with respect to the stream at the last site."""
        walk, total = self.walk, self.zeros()
        around = [*walk.around_layers, walk.family.head]
        with walk.at_hand(*around), self.phase():
            for batch, each, stream in zip(self.batches, self.signals, self.moments["inputs"].pop(), strict=True):
                hidden = stream.to(walk.device)
                slope = loss_gradient(walk.dense, batch, hidden, walk.device, walk.dtype)
                add_second_moment_(total, each.tokens(slope), root_mean_square(each.tokens(hidden)))
                self.moments["slopes"].append(walk.keep(slope))
            walk.add_up(total)
        self.moments["gradient"].append(walk.keep(total))

    def backward(self, index: int) -> None:
        """Takes the gradient back through a layer, and its moments after each block but the last, and before all."""
        walk, layer = self.walk, self.walk.dense_layers[index]
        sums, before = [self.zeros() for _ in walk.family.blocks], []
        with walk.at_hand(walk.layer_name(index)), self.phase(), placed(layer, walk.device, walk.dtype):
            batches = zip(self.signals, self.moments["inputs"].pop(), self.moments["slopes"], strict=True)
            for each, stream, slope in batches:
                start = stream.to(walk.device).detach().requires_grad_()
                with torch.enable_grad():
                    *inside, after = layer_streams(layer, walk.family, start, each.layer_kwargs[index])
                    slopes = torch.autograd.grad(after, [start, *inside], slope.to(walk.device))
                streams = [start, *at_site(inside, walk.family, start)]
                slopes = at_site(slopes, walk.family, start)
                for total, *pair in zip(sums, streams, slopes, strict=True):
                    stream, slope = map(each.tokens, pair)
                    add_second_moment_(total, slope, root_mean_square(stream))
                before.append(walk.keep(slopes[0]))
            walk.add_up(*sums)
        self.moments["gradient"][:0] = map(walk.keep, sums)
        self.moments["slopes"] = before

    @contextmanager
    def neurons_noted(self, layer: nn.Module) -> Iterator[list[Tensor]]:
        """For the time of a computation, notes what the writer of a layer's MLP reads, if neurons are shared out."""
        seen = []
        if not self.shares:
            yield seen
            return
        writer = layer.get_submodule(self.walk.family.mlp_writer)
        hook = writer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            yield seen
        finally:
            hook.remove()

    def zeros(self) -> Tensor:
        size = self.walk.plan.hidden_size
        return torch.zeros(size, size, dtype=torch.float64, device=self.walk.device)

    def phase(self):
        return self.walk.phase("gradients" if self.gradients else "second moments")


def loss_gradient(model, batch, hidden, device, dtype):
    """Gradient `(B, T, D)` of the summed next-token loss with respect to the stream at the last site."""
    slopes = []
    for row, stream in enumerate(hidden.detach().split(1)):  # the logits of one sequence are large enough
        inputs = {key: value[row : row + 1].to(model.device) for key, value in batch.items()}
        targets = inputs["input_ids"][:, 1:].clone()
        if "attention_mask" in inputs:
            targets[~inputs["attention_mask"][:, 1:].bool()] = -100
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            stream.requires_grad_()
            with injected(model, stream.to(model.device, model.dtype)):
                logits = model(**inputs, use_cache=False).logits[0, :-1].float()
            loss = nn.functional.cross_entropy(logits, targets[0], reduction="sum")
            slopes += torch.autograd.grad(loss, stream)
    return torch.cat(slopes)
