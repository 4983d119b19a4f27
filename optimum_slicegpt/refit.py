"""
Slicing beyond the paper: axes that all sites may share, readers and writers solved again, and smaller MLPs.

Two streams go through the blocks side by side: x of the dense model, z of the sliced one. Each block's readers are
fitted so that they find in z what the dense ones found in x, and each block's writers so that z follows x, which also
repairs what earlier blocks have lost. All of it is linear regression, on tokens that the sliced model itself computes.
"""

import torch
from torch import Tensor, nn

from .assembly import inputs_recorded, placed, resize_mlps
from .axes import AxesWalk
from .dense_pass import DensePass, at_site, layer_streams, root_mean_square
from .fusion import writer_map
from .modeling.family import Block
from .modeling.weights import Reader, Writer
from .regression import LeastSquares, spacing
from .schedule import neurons_by_layer
from .signals import Signal
from .sizes import most_inputs


class RefitWalk(AxesWalk):
    """The state of the walk: both streams, the axes of the site where they are, and what has been written so far."""

    STATE = (*AxesWalk.STATE, "neurons", "streams")

    def __init__(self, *args):
        super().__init__(*args)
        self.streams = []
        self.most_inputs = most_inputs(self.dense)
        # Of every layer, once they are known; `None` for an MLP without neurons to delete.
        self.neurons = [self.plan.inner] * len(self.dense_layers)

    def steps(self):
        before = []
        if self.config.metric == "fisher" or not self.plan.shortcuts or not self.config.refit:
            before += DensePass(self, self.enough, self.moments).steps()
        if self.shares_neurons:
            before.append(self.share_neurons)
        if not self.plan.shortcuts:
            before.append(self.share_axes)
        return [*before, *super().steps()]

    def share_neurons(self) -> None:
        costs = [each.to("cpu") for each in self.moments.pop("costs")]
        self.neurons = neurons_by_layer(costs, self.plan.inner, self.config.round_to)
        resize_mlps(self.sliced, self.neurons)
        self.storage.lay_out(self)

    def set_state(self, state) -> None:
        super().set_state(state)
        resize_mlps(self.sliced, self.neurons)

    def begin(self) -> None:
        self.enter([signal.hidden for signal in self.signals])
        start = writer_map(self.write, self.scale(0), self.family.layer_norm)
        self.set_embeddings(self.write, self.scale(0))
        if self.config.refit:
            with self.phase("forward"):
                start = start.to(self.dtype)
                self.streams = [self.keep(each.hidden.to(self.device) @ start) for each in self.signals]

    def end(self) -> None:
        norm = self.dense_body.get_submodule(self.family.final_norm)
        self.set_head(self.reading(norm, [each.hidden for each in self.signals]), 1.0)

    # Blocks

    def layer(self, index: int) -> None:
        """Takes both streams through a layer, and writes its weights."""
        dense, blocks = self.dense_layers[index], self.family.blocks
        if not self.config.refit:
            for block in blocks:
                self.block(index, block, None, None)
            return
        with self.phase("forward"), placed(dense, self.device, self.dtype):
            after = [[] for _ in blocks]
            for each in self.signals:
                hidden = each.hidden.to(self.device)
                streams = layer_streams(dense, self.family, hidden, each.layer_kwargs[index])
                for targets, stream in zip(after, at_site(streams, self.family, hidden), strict=True):
                    targets.append(self.keep(stream))
        before = [each.hidden for each in self.signals]
        for block, targets in zip(blocks, after, strict=True):
            self.block(index, block, before, targets)
            before = targets
        for signal, stream in zip(self.signals, before, strict=True):
            signal.hidden = stream

    def block(self, index: int, block: Block, before: list[Tensor], after: list[Tensor]) -> None:
        """Reads at the current site, writes at the next; the dense stream goes from `before` to `after`."""
        dense, sliced = self.dense_layers[index], self.sliced_layers[index]
        for norm, names in block.reads:
            self.set_norm(sliced, norm, self.plan.widths[self.site])
            dense_norm = dense.get_submodule(norm)
            axes = self.reading(dense_norm, before)
            with self.phase("compose"):
                for name in names:
                    self.set_reader(Reader(sliced, name), Reader(dense, name), dense_norm, axes, 1.0)
        read, scale = self.read, self.scale(self.site)
        self.site += 1
        self.enter(after)
        with self.phase("compose"):
            for name in block.writers:
                target, source = Writer(sliced, name), Writer(dense, name)
                self.set_writer(target, source, self.write, self.scale(self.site), like=source.weight)
            shortcut = None
            if self.plan.shortcuts:
                shortcut = read.T @ self.write * (self.scale(self.site) / scale)
                self.set_linear(sliced.get_submodule(block.shortcut), shortcut.T)
        if not self.config.refit:
            return
        if block.keeps_width:  # experts: each sees tokens of its own, and is written as the axes have it
            with self.phase("forward"), placed(sliced, self.device, self.dtype):
                for position, signal in enumerate(self.signals):
                    stream = self.streams[position].to(self.device)
                    output = sliced.block_output(block.kind, stream, signal.layer_kwargs[index])
                    self.streams[position] = self.keep(output + self.passed_on(stream, shortcut))
            return
        self.fit_writers(index, block, shortcut, after)

    def reading(self, dense_norm: nn.Module, before: list[Tensor] | None) -> Tensor:
        """
        What readers of the current site read along `(D, k)`, the stream's scale undone: its axes, or with a refit what
        leads from the sliced norm's output to the dense one's.
        """
        prior = self.read / self.scale(self.site)
        if not self.config.refit:
            return prior
        eps = getattr(dense_norm, "variance_epsilon", getattr(dense_norm, "eps", self.family.norm_eps))
        fit = LeastSquares(prior.shape[1], prior.shape[0], self.device)
        with self.phase("regression"):
            for signal, dense, sliced in zip(self.signals, before, self.streams, strict=True):
                pair = self.some(signal, prior.shape[1], sliced, dense)
                fit.add(*(nn.functional.rms_norm(stream, stream.shape[-1:], eps=eps) for stream in pair))
            self.processes.add_up(fit.sums)
        with self.phase("solve"):
            return self.processes.agreed(fit.solve(prior.T).T)

    def fit_writers(self, index: int, block: Block, shortcut: Tensor | None, after: list[Tensor]) -> None:
        """Solves a block's writers again, deletes neurons of its MLP, and takes the sliced stream to the next site."""
        sliced = self.sliced_layers[index]
        writers = {name: Writer(sliced, name) for name in block.writers}
        biased = [writer for writer in writers.values() if writer.bias is not None]

        # What a block adds to the stream is a linear function of its writers' inputs, and of one for a bias.
        rows = [writer.weight.to(self.write) for writer in writers.values()]
        if biased:
            rows.append(sum(writer.bias for writer in biased)[None].to(self.write))
        sizes = [len(each) for each in rows]
        inputs = self.inputs_of(index, block, bool(biased))
        fit = LeastSquares(sum(sizes), self.write.shape[1], self.device)
        with self.phase("regression"):
            goal = (self.write * self.scale(self.site)).to(self.dtype)
            for signal, *streams in zip(self.signals, inputs, self.streams, after, strict=True):
                given, stream, target = self.some(signal, sum(sizes), *streams)
                wanted = (target @ goal).float() - self.passed_on(stream, shortcut)
                fit.add(given, wanted, 1 / root_mean_square(target))
            self.processes.add_up(fit.sums)

        with self.phase("solve"):
            fitted, stays = self.processes.agreed(fit.solve(torch.cat(rows))), None
            kept = self.neurons[index]
            if kept is not None and self.family.mlp_writer in writers:
                position = block.writers.index(self.family.mlp_writer)
                first, count = sum(sizes[:position]), sizes[position]
                # All directions alike, whatever the metric: by the gradient, neurons are chosen for this text alone.
                neurons = slice(first, first + count)
                fitted, stays = map(self.processes.agreed, fit.without(neurons, count - kept, fitted))
                sizes[position] = kept
                self.keep_neurons(sliced, stays[first : first + kept] - first, count)
            parts = fitted.split(sizes)
            for writer, weight in zip(writers.values(), parts, strict=False):
                bias = None
                if writer.bias is not None:  # the first takes what all add
                    bias = parts[-1][0] if writer is biased[0] else torch.zeros_like(parts[-1][0])
                writer.set(weight, bias, like=writer.weight)

        with self.phase("forward"):
            matrix = fitted.to(self.dtype)
            for position, given in enumerate(inputs):
                given = given.to(self.device)
                added = (given if stays is None else given[..., stays]) @ matrix
                added += self.passed_on(self.streams[position], shortcut)
                self.streams[position] = self.keep(added)

    def some(self, signal: Signal, inputs: int, *values: Tensor) -> list[Tensor]:
        """Values `(B, T, ...)` of the tokens that a regression with so many inputs takes, as `(tokens, ...)`."""
        every = spacing(inputs, self.most_inputs)
        return [signal.tokens(each.to(self.device))[::every] for each in values]

    def passed_on(self, stream: Tensor, shortcut: Tensor | None) -> Tensor:
        """What the residual connection makes of a stream."""
        stream = stream.to(self.device)
        return stream if shortcut is None else stream @ shortcut.to(stream)

    def inputs_of(self, index: int, block: Block, ones: bool) -> list[Tensor]:
        """What a sliced block's writers read `(B, T, inputs)`, one behind the other, and perhaps ones behind them."""
        sliced = self.sliced_layers[index]
        modules = [sliced.get_submodule(name) for name in block.writers]
        multiplier = self.family.residual_multiplier
        factor = getattr(sliced, multiplier) if multiplier else 1.0
        inputs = []
        with self.phase("forward"), placed(sliced, self.device, self.dtype), inputs_recorded(modules) as seen:
            for stream, signal in zip(self.streams, self.signals, strict=True):
                stream = stream.to(self.device)
                sliced.block_output(block.kind, stream, signal.layer_kwargs[index])
                parts = [seen[module] for module in modules] + [torch.ones_like(stream[..., :1])] * ones
                if multiplier:
                    parts = [part * factor for part in parts]
                inputs.append(self.keep(torch.cat(parts, -1) if len(parts) > 1 else parts[0]))
        return inputs

    def keep_neurons(self, sliced: nn.Module, kept: Tensor, count: int) -> None:
        """Keeps the neurons `kept` of `count`. Where a family fuses gate and up projection, each has a row in both."""
        for name in self.family.mlp_readers:
            reader = Reader(sliced, name)
            rows = torch.cat([kept + start for start in range(0, reader.weight.shape[-2], count)])
            rows = rows.to(reader.weight.device)
            bias = None if reader.bias is None else reader.bias[rows]
            reader.set(reader.weight[rows], bias, like=reader.weight)
