"""What every walk over the blocks shares: where it computes, how long that took, and how weights are written."""

import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .assembly import adopt_untouched, build_sliced
from .configuration import SliceGPTConfig
from .fusion import reader_bias, reader_map, writer_map
from .modeling.families import family_of
from .modeling.weights import Reader, Writer
from .rotation import compose
from .widths import SlicePlan


@dataclass
class SlicedResult:
    """
    What a run gives.

    Args:
        model (`PreTrainedModel`): the sliced model; shares with the dense one the tensors that slicing leaves alone.
        energy_kept (`list[float]`): share of the signal's energy that is kept at every site.
        seconds (`dict[str, float]`): wall time by phase.
    """

    model: PreTrainedModel
    energy_kept: list[float]
    seconds: dict[str, float]


class Walk:
    """
    One run over the dense model, block by block. Reads it, never changes it, and fills a sliced one.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        plan ([`SlicePlan`]): what to keep.
        batches (`list[dict[str, torch.Tensor]]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`.
        config ([`SliceGPTConfig`]): how, and where to compute.
    """

    def __init__(
        self, model: PreTrainedModel, plan: SlicePlan, batches: list[dict[str, Tensor]], config: SliceGPTConfig
    ):
        self.dense, self.plan, self.config, self.batches = model, plan, config, batches
        self.family = family_of(model.config)
        self.sliced = build_sliced(model, plan)
        self.dense_body = model.base_model.get_submodule(self.family.body)
        self.sliced_body = self.sliced.base_model.get_submodule(self.family.body)
        self.dense_layers = getattr(self.dense_body, self.family.layers)
        self.sliced_layers = getattr(self.sliced_body, self.family.layers)
        self.device = torch.device(config.device or model.device)
        self.dtype = getattr(torch, config.dtype) if config.dtype else model.dtype
        self.kept_on = torch.device("cpu") if config.offload_activations else self.device
        self.generator = torch.Generator().manual_seed(config.seed or 0)
        self.energy_kept, self.seconds = [], defaultdict(float)
        adopt_untouched(model, self.sliced)

    def result(self) -> SlicedResult:
        return SlicedResult(self.sliced, self.energy_kept, dict(self.seconds))

    @contextmanager
    def phase(self, name: str):
        """Adds the time that something takes to a phase of the run."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start

    def progress(self, steps, unit: str, desc: str = "Slicing"):
        """The steps, with a progress bar on terminals."""
        return logging.tqdm(steps, desc=desc, unit=unit, disable=None)

    def scale(self, site: int) -> float:
        """Factor by which the stream is scaled at a site, so that a stock norm over its width is exact."""
        return (self.plan.widths[site] / self.plan.hidden_size) ** 0.5

    def site_name(self, site: int) -> str:
        return f"site {site} ({self.family.site_name(site, self.dense.config)})"

    def check_finite(self, moment: Tensor, site: int) -> None:
        """
        Refuses statistics of activations that overflowed.

        Raises:
            ValueError: they did.
        """
        if not moment.isfinite().all():
            raise ValueError(
                f"Activations at {self.site_name(site)} are not finite in {self.dtype}; the model is unchanged. "
                "Calibrate with dtype='bfloat16' or dtype='float32'."
            )

    # Writing weights. `axes` are columns `(D, k)`: orthonormal ones, or what was fitted in their place.

    def set_reader(self, target: Reader, source: Reader, norm: nn.Module, axes: Tensor, scale: float) -> None:
        """A reader: `(out, D)` becomes `(out, k)`."""
        matrix = reader_map(norm, self.family.gain_offset, axes, scale)
        weight = compose(source.weight, matrix, source.weight.dtype)
        target.set(weight, reader_bias(source, norm), like=source.weight)

    def set_writer(self, target: Writer, source: Writer, axes: Tensor, scale: float, like: Tensor) -> None:
        """A writer: `(D, in)` becomes `(k, in)`."""
        matrix = writer_map(axes, scale, self.family.layer_norm)
        bias = None if source.bias is None else source.bias.to(matrix) @ matrix
        target.set(compose(source.weight, matrix, like.dtype), bias, like=like)

    def set_linear(self, target: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
        """A matrix that slicing adds: a shortcut or a projection."""
        like = {"device": self.dense.device, "dtype": self.dense.dtype}
        target.weight = nn.Parameter(weight.to(**like).contiguous())
        if bias is not None:
            target.bias = nn.Parameter(bias.to(**like, copy=True))

    def set_norm(self, parent: nn.Module, name: str, width: int) -> None:
        """What is left of a norm once its readers have its gain."""
        gain = torch.ones(width, dtype=self.dense.dtype, device=self.dense.device)
        parent.get_submodule(name).weight = nn.Parameter(gain)

    def set_embeddings(self, axes: Tensor, scale: float) -> None:
        """What starts the stream: tables, or the projection behind a table that the head shares."""
        if self.plan.tied:
            matrix = writer_map(axes, scale, self.family.layer_norm)
            self.set_linear(self.sliced_layers[0].embedding_projection, matrix.T)
            return
        for name in self.family.embeddings:
            source, target = Writer(self.dense_body, name), Writer(self.sliced_body, name)
            self.set_writer(target, source, axes, scale, like=source.weight)

    def set_head(self, axes: Tensor, scale: float) -> None:
        """What reads the last site through the final norm: the head, or the way back to the shared matrix."""
        name = self.family.final_norm
        self.set_norm(self.sliced_body, name, self.plan.widths[-1])
        norm = self.dense_body.get_submodule(name)
        if self.plan.tied:
            matrix = reader_map(norm, self.family.gain_offset, axes, scale)
            self.set_linear(self.sliced_body.get_submodule(name).projection, matrix, getattr(norm, "bias", None))
            return
        target, source = Reader(self.sliced, self.family.head), Reader(self.dense, self.family.head)
        self.set_reader(target, source, norm, axes, scale)
