"""
The algorithm of SliceGPT: one walk over the blocks, each computed once per calibration batch.

At every site the stream is written in the basis of its own principal axes and cut to the first k of them. A block
reads the cut stream and writes all D dimensions, in the basis of the site before it: there the cut stream is simply
the first k coordinates, so the residual connection costs one addition, and the next site's axes, seen from this basis,
are the shortcut.
"""

import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .assembly import adopt_untouched, build_sliced, evaluating, padded, placed
from .configuration import SliceGPTConfig
from .fusion import reader_bias, reader_map, writer_map
from .modeling.families import family_of
from .modeling.weights import Reader, Writer
from .rotation import add_second_moment_, compose, principal_axes, random_orthogonal
from .signals import first_signal
from .widths import SlicePlan


@dataclass
class SlicedResult:
    """
    What a run gives.

    Args:
        model (`PreTrainedModel`): the sliced model; shares with the dense one the tensors that slicing leaves alone.
        energy (`list[torch.Tensor]`): at every site, the eigenvalues `(D,)` of the second moment, descending.
        seconds (`dict[str, float]`): wall time by phase.
    """

    model: PreTrainedModel
    energy: list[Tensor]
    seconds: dict[str, float]


@torch.no_grad()
def compress(
    model: PreTrainedModel, plan: SlicePlan, batches: list[dict[str, Tensor]], config: SliceGPTConfig
) -> SlicedResult:
    """
    Slices a model (SliceGPT, algorithm 1). The dense model is read, never changed.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        plan ([`SlicePlan`]): width at every site.
        batches (`list[dict[str, torch.Tensor]]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`.
        config ([`SliceGPTConfig`]): orientation, seed, device, dtype.

    Raises:
        ValueError: activations are not finite.
    """
    run = _Run(model, plan, batches, config)
    with evaluating(model):
        run.embed()
    for layer, block in run.walk():
        run.block(layer, block)
    run.head()
    return SlicedResult(run.sliced, run.energy, dict(run.seconds))


class _Run:
    """The state of one walk: where the stream is, in which basis, and what has been written so far."""

    def __init__(self, model, plan, batches, config):
        self.dense, self.plan, self.config = model, plan, config
        self.family = family_of(model.config)
        self.sliced = build_sliced(model, plan)
        self.dense_body = model.base_model.get_submodule(self.family.body)
        self.sliced_body = self.sliced.base_model.get_submodule(self.family.body)
        self.device = torch.device(config.device or model.device)
        self.dtype = getattr(torch, config.dtype) if config.dtype else model.dtype
        self.kept_on = torch.device("cpu") if config.offload_activations else self.device
        self.generator = torch.Generator().manual_seed(config.seed or 0)
        self.batches = batches
        self.energy, self.seconds = [], defaultdict(float)
        self.site, self.rotation = 0, None
        adopt_untouched(model, self.sliced)

    @contextmanager
    def phase(self, name):
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start

    def walk(self):
        """Every block with the index of its layer, in the order of the stream, with a progress bar on terminals."""
        layers = getattr(self.dense_body, self.family.layers)
        steps = [(index, block) for index in range(len(layers)) for block in self.family.blocks]
        yield from logging.tqdm(steps, desc="Slicing", unit="block", disable=None)

    def scale(self, site):
        return (self.plan.widths[site] / self.plan.hidden_size) ** 0.5

    def kept(self, site):
        """The axes kept at a site `(D, k)`."""
        return self.rotation[:, : self.plan.widths[site]]

    # Writing weights

    def set_reader(self, target, source, norm, axes):
        """A reader of the current site: `(out, D)` becomes `(out, k)`."""
        matrix = reader_map(norm, self.family.gain_offset, axes, self.scale(self.site))
        weight = compose(source.weight, matrix, source.weight.dtype)
        target.set(weight, reader_bias(source, norm), like=source.weight)

    def set_writer(self, target, source, rotation, scale, like):
        """A writer: `(D, in)` becomes `(k, in)`, or stays wide while the block gives its statistics."""
        matrix = writer_map(rotation, scale, self.family.layer_norm)
        bias = None if source.bias is None else source.bias.to(matrix) @ matrix
        target.set(compose(source.weight, matrix, like.dtype), bias, like=like)

    def set_linear(self, target, weight, bias=None):
        """A matrix that slicing adds: a shortcut or a projection."""
        like = {"device": self.dense.device, "dtype": self.dense.dtype}
        target.weight = nn.Parameter(weight.to(**like).contiguous())
        if bias is not None:
            target.bias = nn.Parameter(bias.to(**like, copy=True))

    def set_norm(self, parent, name, width):
        """What is left of a norm once its readers have its gain."""
        gain = torch.ones(width, dtype=self.dense.dtype, device=self.dense.device)
        parent.get_submodule(name).weight = nn.Parameter(gain)

    # Steps

    def embed(self):
        """Turns tokens into the stream of the first site, and writes the embeddings."""
        width, scale = self.plan.widths[0], self.scale(0)
        with self.phase("forward"):
            self.batches = [
                first_signal(self.dense, batch, self.device, self.dtype, self.kept_on) for batch in self.batches
            ]
        self.rotation = self.new_axes()
        self.project(self.rotation[:, :width] * scale)
        with self.phase("compose"):
            if self.plan.tied:
                first = getattr(self.sliced_body, self.family.layers)[0]
                self.set_linear(first.embedding_projection, writer_map(self.kept(0), scale, self.family.layer_norm).T)
                return
            for name in self.family.embeddings:
                source, target = Writer(self.dense_body, name), Writer(self.sliced_body, name)
                self.set_writer(target, source, self.kept(0), scale, like=source.weight)

    def block(self, index, block):
        """Reads at the current site, writes at the next."""
        dense = getattr(self.dense_body, self.family.layers)[index]
        sliced = getattr(self.sliced_body, self.family.layers)[index]
        width, scale = self.plan.widths[self.site], self.scale(self.site)
        readers = [(Reader(sliced, name), Reader(dense, name), norm) for norm, names in block.reads for name in names]
        writers = [(Writer(sliced, name), Writer(dense, name)) for name in block.writers]

        # Where a block must write as many dimensions as it reads, it reads zeros behind the stream.
        axes, padding = self.kept(self.site), nullcontext()
        if block.keeps_width:
            axes, padding = self.rotation, padded(getattr(sliced, self.family.mlp[0]), self.plan.hidden_size - width)
        wide = torch.empty(0, dtype=self.dtype, device=self.device)
        with self.phase("compose"):
            for norm, _ in block.reads:
                self.set_norm(sliced, norm, width)
            for target, source, norm in readers:
                self.set_reader(target, source, dense.get_submodule(norm), axes)
            for target, source in writers:
                self.set_writer(target, source, self.rotation, scale, like=wide)

        with self.phase("forward"), placed(sliced, self.device, self.dtype), padding:
            for batch in self.batches:
                hidden = batch.hidden.to(self.device)
                output = sliced.block_output(block.kind, hidden, batch.layer_kwargs[index])
                output[..., :width] += hidden
                batch.hidden = output.to(self.kept_on)

        change = self.new_axes()
        self.site += 1
        next_width, next_scale = self.plan.widths[self.site], self.scale(self.site)
        shortcut = change[:width, :next_width] * (next_scale / scale)
        self.project(change[:, :next_width] * (next_scale / scale))
        with self.phase("compose"):
            self.rotation = self.rotation @ change
            self.set_linear(sliced.get_submodule(block.shortcut), shortcut.T)
            for target, source in writers:
                self.set_writer(target, source, self.kept(self.site), next_scale, like=source.weight)
            if block.keeps_width:
                for target, source, _ in readers:
                    target.set(target.weight[..., :width], like=source.weight)

    def head(self):
        """Writes what reads the last site through the final norm: the head, or the way back to the shared matrix."""
        name, axes = self.family.final_norm, self.kept(self.site)
        self.set_norm(self.sliced_body, name, self.plan.widths[-1])
        norm = self.dense_body.get_submodule(name)
        with self.phase("compose"):
            if self.plan.tied:
                matrix = reader_map(norm, self.family.gain_offset, axes, self.scale(self.site))
                projection = self.sliced_body.get_submodule(name).projection
                self.set_linear(projection, matrix, getattr(norm, "bias", None))
                return
            target, source = Reader(self.sliced, self.family.head), Reader(self.dense, self.family.head)
            self.set_reader(target, source, norm, axes)

    # Statistics

    def new_axes(self):
        """
        Principal axes of the batches' stream, as a change from the basis it is in.

        Returns:
            `torch.Tensor` of shape `(D, D)`, float64, orthogonal: new axes in columns.
        """
        site = len(self.energy)
        size = self.plan.hidden_size
        with self.phase("second moments"):
            moment = torch.zeros(size, size, dtype=torch.float64, device=self.device)
            for batch in self.batches:
                hidden = batch.hidden.to(self.device)
                add_second_moment_(moment, hidden.flatten(0, 1) if batch.real is None else hidden[batch.real])
        if not moment.isfinite().all():
            raise ValueError(
                f"Activations at {self.site_name(site)} are not finite in {self.dtype}; the model is unchanged. "
                "Calibrate with dtype='bfloat16' or dtype='float32'."
            )
        with self.phase("axes"):
            energy, axes = principal_axes(moment)
            if self.config.orientation == "random":
                width = self.plan.widths[site]
                axes[:, :width] = axes[:, :width] @ random_orthogonal(width, self.generator).to(self.device)
        unscaled = energy if site == 0 else energy / self.scale(site - 1) ** 2
        self.energy.append(unscaled.cpu())
        return axes

    def site_name(self, site):
        blocks = self.family.blocks
        layer, block = divmod(site, len(blocks))
        if layer == self.dense.config.num_hidden_layers:
            return f"site {site} (before the head)"
        return f"site {site} (layer {layer}, before its {blocks[block].kind} block)"

    def project(self, matrix):
        """Moves the batches' stream to other axes: `x @ matrix`."""
        with self.phase("forward"):
            matrix = matrix.to(self.dtype)
            for batch in self.batches:
                batch.hidden = (batch.hidden.to(self.device) @ matrix).to(self.kept_on)
