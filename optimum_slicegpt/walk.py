"""What every walk over the blocks shares: its steps, where it computes, how long that took, how weights are set."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .assembly import adopt_untouched, build_sliced, evaluating
from .configuration import SliceGPTConfig
from .fusion import reader_bias, reader_map, writer_map
from .modeling.families import family_of
from .modeling.weights import Reader, Writer
from .processes import Processes
from .rotation import compose, mirror_
from .signals import first_signal
from .storage import InMemory, release_freed_memory
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
    One run over the dense model, layer by layer. Reads it, never changes it, and fills a sliced one.

    A run is a list of steps. Between two of them, all that the rest depends on is in the attributes that `STATE` names
    and in the stream of each batch, so it can be saved there and taken up again.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        plan ([`SlicePlan`]): what to keep.
        batches (`list[dict[str, torch.Tensor]]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`. Of several
            processes, each gives all of them and walks with its share.
        config ([`SliceGPTConfig`]): how, and where to compute.
        storage ([`InMemory`] or [`OnDisk`]): where weights and activations are.
    """

    STATE: tuple[str, ...] = ("site", "energy_kept")
    """Attributes that hold numbers, tensors, `None`, or lists or mappings of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: SlicePlan,
        batches: list[dict[str, Tensor]],
        config: SliceGPTConfig,
        storage: InMemory,
    ):
        self.dense, self.plan, self.config, self.storage = model, plan, config, storage
        self.family = family_of(model.config)
        self.sliced = build_sliced(model, plan)
        self.dense_body = model.base_model.get_submodule(self.family.body)
        self.sliced_body = self.sliced.base_model.get_submodule(self.family.body)
        self.dense_layers = getattr(self.dense_body, self.family.layers)
        self.sliced_layers = getattr(self.sliced_body, self.family.layers)
        self.body_name = ".".join(filter(None, (model.base_model_prefix, self.family.body)))
        self.device = torch.device(config.device or storage.home)
        if self.device.type == "mps":
            raise ValueError(
                "Cannot slice on device='mps', which has no float64 for sums over tokens; use device='cpu'."
            )
        self.dtype = getattr(torch, config.dtype) if config.dtype else model.dtype
        self.processes = Processes(self.device)
        self.batch_tokens = [batch["input_ids"].numel() for batch in batches]  # of all processes
        self.batches = self.processes.share(batches)
        self.generator = torch.Generator().manual_seed(config.seed or 0)
        self.site, self.energy_kept, self.seconds = 0, [], defaultdict(float)
        adopt_untouched(model, self.sliced)

    @property
    def shares_neurons(self) -> bool:
        """Whether MLPs keep different numbers of neurons, which their costs decide."""
        return self.config.schedule == "energy" and self.plan.inner is not None

    # Steps

    def run(self) -> SlicedResult:
        """Does all steps that are not done yet."""
        with evaluating(self.dense):
            self.start()
            done, steps = self.storage.restore(self), self.steps()
            for count, step in enumerate(self.progress(steps[done:]), done + 1):
                step()
                self.storage.commit(self, count)
                release_freed_memory()
        return SlicedResult(self.sliced, self.energy_kept, dict(self.seconds))

    def start(self) -> None:
        """Turns tokens into the stream of the first site; also where a run is taken up, for what layers are given."""
        with self.at_hand(*self.around_layers), self.phase("forward"):
            self.signals = [first_signal(self.dense, batch, self.device, self.dtype) for batch in self.batches]
            for signal in self.signals:
                signal.hidden = self.keep(signal.hidden)

    def steps(self) -> list[Callable[[], None]]:
        layers = [partial(self.at_layer, index) for index in range(len(self.dense_layers))]
        return [self.begin, *layers, self.end]

    def at_layer(self, index: int) -> None:
        name = self.layer_name(index)
        with self.at_hand(name):
            adopt_untouched(self.dense, self.sliced, [name])
            self.layer(index)

    def begin(self) -> None:
        """Finds the axes of the first site, and writes what starts the stream."""
        raise NotImplementedError

    def layer(self, index: int) -> None:
        """Takes the stream through a layer, and writes its weights."""
        raise NotImplementedError

    def end(self) -> None:
        """Writes what reads the last site."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What the steps that are left depend on."""
        state = {name: getattr(self, name) for name in self.STATE}
        streams = [signal.hidden for signal in self.signals]
        return state | {"hidden": streams, "seconds": self.seconds, "generator": self.generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what [`Walk.state`] gave."""
        for name in self.STATE:
            setattr(self, name, state[name])
        for signal, hidden in zip(self.signals, state["hidden"], strict=True):
            signal.hidden = hidden
        self.seconds.update(state["seconds"])
        self.generator.set_state(state["generator"].to("cpu"))

    # Weights and activations

    def at_hand(self, *names: str) -> AbstractContextManager:
        """For the time of a computation, modules of the dense model have their values."""
        return self.storage.at_hand(self, names)

    def layer_name(self, index: int) -> str:
        return f"{self.body_name}.{self.family.layers}.{index}"

    @property
    def around_layers(self) -> list[str]:
        """Names of the body's modules but for its layers: tables, and what depends on positions."""
        names = [name for name, _ in self.dense_body.named_children() if name != self.family.layers]
        return [f"{self.body_name}.{name}" for name in names]

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor for later, of which only `shape` and `to(device)` can be had."""
        return self.storage.keep(tensor.contiguous())

    @contextmanager
    def phase(self, name: str):
        """Adds the time that something takes to a phase of the run."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start

    def progress(self, steps: Sequence, desc: str = "Slicing"):
        """The steps, with a progress bar on terminals."""
        return logging.tqdm(steps, desc=desc, unit="step", disable=None if self.processes.is_first else True)

    def scale(self, site: int) -> float:
        """Factor by which the stream is scaled at a site, so that a stock norm over its width is exact."""
        return (self.plan.widths[site] / self.plan.hidden_size) ** 0.5

    def site_name(self, site: int) -> str:
        return f"site {site} ({self.family.site_name(site, self.dense.config)})"

    def add_up(self, *moments: Tensor) -> None:
        """Makes second moments of this process's tokens, in place, those of all, and whole."""
        self.processes.add_up(*moments)
        for moment in moments:
            mirror_(moment)

    def check_finite(self, moment: Tensor, site: int) -> None:
        """
        Refuses statistics of activations that overflowed.

        Raises:
            ValueError: they did.
        """
        if not moment.isfinite().all():
            raise ValueError(
                f"Activations at {self.site_name(site)} are not finite in {self.dtype}; the model is unchanged. "
                "Calibrate with a wider dtype, or look for weights that are not finite."
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
        like = {"device": self.storage.home, "dtype": self.dense.dtype}
        target.weight = nn.Parameter(weight.to(**like).contiguous())
        if bias is not None:
            target.bias = nn.Parameter(bias.to(**like, copy=True))

    def set_norm(self, parent: nn.Module, name: str, width: int) -> None:
        """What is left of a norm once its readers have its gain."""
        gain = torch.ones(width, dtype=self.dense.dtype, device=self.storage.home)
        parent.get_submodule(name).weight = nn.Parameter(gain)

    def set_embeddings(self, axes: Tensor, scale: float) -> None:
        """What starts the stream: tables, or the projection behind a table that the head shares."""
        tables = [f"{self.body_name}.{name}" for name in self.family.embeddings]
        if self.plan.tied:
            tables.append(self.family.head)
        with self.at_hand(*tables), self.phase("compose"):
            adopt_untouched(self.dense, self.sliced, tables)
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
        head = [] if self.plan.tied else [self.family.head]
        with self.at_hand(f"{self.body_name}.{name}", *head), self.phase("compose"):
            self.set_norm(self.sliced_body, name, self.plan.widths[-1])
            norm = self.dense_body.get_submodule(name)
            if self.plan.tied:
                matrix = reader_map(norm, self.family.gain_offset, axes, scale)
                self.set_linear(self.sliced_body.get_submodule(name).projection, matrix, getattr(norm, "bias", None))
                return
            target, source = Reader(self.sliced, self.family.head), Reader(self.dense, self.family.head)
            self.set_reader(target, source, norm, axes, scale)
