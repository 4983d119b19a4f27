"""
The algorithm of SliceGPT: one walk over the blocks, each computed once per calibration batch.

At every site the stream is written in the basis of its own principal axes and cut to the first k of them. A block
reads the cut stream and writes all D dimensions, in the basis of the site before it: there the cut stream is simply
the first k coordinates, so the residual connection costs one addition, and the next site's axes, seen from this basis,
are the shortcut.
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .assembly import padded, placed
from .configuration import SliceGPTConfig
from .modeling.weights import Reader, Writer
from .refit import RefitWalk
from .rotation import add_second_moment_, principal_axes, random_orthogonal
from .storage import InMemory
from .walk import SlicedResult, Walk
from .widths import SlicePlan


@torch.no_grad()
def compress(
    model: PreTrainedModel,
    plan: SlicePlan,
    batches: list[dict[str, Tensor]],
    config: SliceGPTConfig,
    storage: InMemory | None = None,
) -> SlicedResult:
    """
    Slices a model: by the method of SliceGPT, section 3, or, where `config` asks for a shared rotation, a refit, a
    metric or smaller MLPs, by [`RefitWalk`]. The dense model is read, never changed.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        plan ([`SlicePlan`]): width at every site.
        batches (`list[dict[str, torch.Tensor]]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`; the same in
            all processes, which share them out, and which all get the result.
        config ([`SliceGPTConfig`]): rotation, refit, metric, orientation, seed, device, dtype.
        storage ([`InMemory`] or [`OnDisk`], *optional*): where weights and activations are. In memory by default.

    Raises:
        ConnectionError: another process has failed.
        ValueError: activations are not finite; processes were given different things.
    """
    beyond = config.refit or config.metric != "none" or not plan.shortcuts or plan.inner is not None
    walk = (RefitWalk if beyond else PaperWalk)(model, plan, batches, config, storage or InMemory(model, config))
    settings = {name: getattr(config, name) for name in ("refit", "metric", "orientation", "seed", "dtype")}
    walk.processes.check_alike({"widths": plan, "settings": settings, "calibration data": batches})
    return walk.run()


class PaperWalk(Walk):
    """The state of the walk: where the stream is, in which basis, and what has been written so far."""

    STATE = (*Walk.STATE, "rotation")

    def begin(self) -> None:
        scale = self.scale(0)
        self.rotation = self.new_axes()
        self.project(self.kept(0) * scale)
        self.set_embeddings(self.kept(0), scale)

    def layer(self, index: int) -> None:
        for block in self.family.blocks:
            self.block(index, block)

    def end(self) -> None:
        self.set_head(self.kept(self.site), self.scale(self.site))

    def kept(self, site):
        """The axes kept at a site `(D, k)`."""
        return self.rotation[:, : self.plan.widths[site]]

    def block(self, index, block):
        """Reads at the current site, writes at the next."""
        dense, sliced = self.dense_layers[index], self.sliced_layers[index]
        width, scale = self.plan.widths[self.site], self.scale(self.site)
        readers = [(Reader(sliced, name), Reader(dense, name), norm) for norm, names in block.reads for name in names]
        writers = [(Writer(sliced, name), Writer(dense, name)) for name in block.writers]

        # Where a block must write as many dimensions as it reads, it reads zeros behind the stream.
        axes, padding = self.kept(self.site), nullcontext()
        if block.keeps_width:
            axes, padding = self.rotation, padded(getattr(sliced, self.family.mlp[0]), self.plan.hidden_size - width)
        # What writes all dimensions is for the forward that follows, and gone after it: no float64 for that.
        wide = torch.empty(0, dtype=self.dtype, device=self.device)
        rotation = self.rotation.to(torch.promote_types(self.dtype, torch.float32))
        with self.phase("compose"):
            for norm, _ in block.reads:
                self.set_norm(sliced, norm, width)
            for target, source, norm in readers:
                self.set_reader(target, source, dense.get_submodule(norm), axes, scale)
            for target, source in writers:
                self.set_writer(target, source, rotation, scale, like=wide)

        with self.phase("forward"), placed(sliced, self.device, self.dtype), padding:
            for signal in self.signals:
                hidden = signal.hidden.to(self.device)
                output = sliced.block_output(block.kind, hidden, signal.layer_kwargs[index])
                output[..., :width] += hidden
                signal.hidden = self.keep(output)

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

    def new_axes(self):
        """
        Principal axes of the batches' stream, as a change from the basis it is in.

        Returns:
            `torch.Tensor` of shape `(D, D)`, float64, orthogonal: new axes in columns.
        """
        site = len(self.energy_kept)
        size, width = self.plan.hidden_size, self.plan.widths[site]
        with self.phase("second moments"):
            moment = torch.zeros(size, size, dtype=torch.float64, device=self.device)
            for signal in self.signals:
                add_second_moment_(moment, signal.tokens(signal.hidden.to(self.device)))
            self.add_up(moment)
        self.check_finite(moment, site)
        with self.phase("axes"):
            energy, axes = principal_axes(moment)
            if self.config.orientation == "random":
                axes[:, :width] = axes[:, :width] @ random_orthogonal(width, self.generator).to(self.device)
        self.energy_kept.append((energy[:width].sum() / energy.sum()).item())
        return self.processes.agreed(axes)

    def project(self, matrix):
        """Moves the batches' stream to other axes: `x @ matrix`."""
        with self.phase("forward"):
            matrix = matrix.to(self.dtype)
            for signal in self.signals:
                signal.hidden = self.keep(signal.hidden.to(self.device) @ matrix)
