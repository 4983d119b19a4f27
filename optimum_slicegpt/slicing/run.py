"""One run over a model: where it computes, which of its steps are done, and how long they take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..distributed import Processes
from ..linalg.axes import aligned_axes, random_orthogonal
from ..modeling.contexts import choose_dtype, placed
from ..modeling.decoder import Decoder
from ..progress import Forecast, announce, track
from ..storage.base import release_freed_memory
from .pairs import BlockPair, NormPair, pair_blocks
from .places import places_of
from .skeleton import adopt_untouched, build_sliced, release_values, resize_mlps
from .state import SlicedResult, State
from .stock_form import StockForm
from .streams import Batch, first_stream, padded_behind
from .writing import reader_map


if TYPE_CHECKING:
    from ..configuration import SliceGPTConfig
    from ..data.batches import TokenBatches
    from ..planning.widths import SlicePlan
    from ..storage.base import Storage


SETTINGS = ("rotation", "refit", "refine", "metric", "schedule", "round_neurons_to", "orientation", "seed", "dtype")
"""Settings on which the steps of a run depend, so that all processes must have the same."""


class Computation:
    """
    A pass over a dense model: the model is read, layer by layer, and never changed.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        batches ([`TokenBatches`]): each of several processes gets all of them and computes with its share.
        config ([`SliceGPTConfig`]): says on which device and in which dtype to compute.
        storage ([`Storage`]): where weights and activations are.

    Attributes:
        dense ([`Decoder`]): the dense model.
        device (`torch.device`), dtype (`torch.dtype`): in which layers compute.
        token_batches (`list[dict]`), places (`list[Place]`): this process's share of the batches, and their places.
        num_tokens (`int`), num_groups (`int`): calibration tokens of all processes, and kinds of text among them.
        batches (`list[Batch]`): the same as layers see them, once [`Computation.start`] has run.
        seconds (`dict[str, float]`): wall time by phase.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: TokenBatches,
        config: SliceGPTConfig,
        storage: Storage,
    ):
        self.dense, self.config, self.storage = Decoder(model), config, storage
        self.device = torch.device(config.device or storage.home)
        if self.device.type == "mps":
            raise ValueError(
                "Cannot slice on device='mps', which has no float64 for sums over tokens; use device='cpu'."
            )
        self.dtype = choose_dtype(config.dtype, model.dtype, self.device)
        self.processes = Processes(self.device)
        if self.dtype != model.dtype and config.dtype in (None, "auto") and self.processes.is_first:
            announce(f"Computing in {str(self.dtype).removeprefix('torch.')}, the fastest here")
        self.num_tokens, self.num_groups = batches.ntokens, len(set(batches.groups))
        places = places_of(batches.counts, batches.groups)
        self.token_batches, self.places = self.share(batches.batches), self.share(places)
        self.batches: list[Batch] = []
        self.seconds = defaultdict(float)

    def start(self) -> list:
        """
        Turns tokens into the stream of the first site, and records what layers are called with.

        Returns:
            `list`: the stream `(B, T, D)` of each batch, as [`Computation.keep`] has it.
        """
        around = self.dense.around_layers
        # What layers are called with, such as the masks of flex attention, is made where they compute.
        tables = placed(self.dense.front_modules(), self.device, self.dense.model.dtype)
        with self.loaded(*around), self.phase("forward"), tables:
            started = [
                first_stream(self, padded_behind(inputs), place)
                for inputs, place in zip(self.token_batches, self.places, strict=True)
            ]
            self.batches = [batch for _, batch in started]
            return [stream for stream, _ in started]

    @contextmanager
    def loaded(self, *names: str) -> Iterator[None]:
        """Loads the values of the named modules of the dense model, for the time of a computation."""
        with ExitStack() as stack:
            with self._storage_phase("read"):
                stack.enter_context(self.storage.loaded(names))
            yield

    def keep(self, tensor: Tensor) -> Any:
        """Stores a tensor. Returns an object with its `shape` and `device`, whose `to(device)` returns the tensor."""
        return self.storage.keep(tensor.contiguous())

    def share(self, items: Sequence) -> Sequence:
        """Returns this process's share of the items."""
        return self.processes.share(items)

    def sum_(self, total: Tensor, site: int, of: str = "Activations") -> None:
        """
        Adds a sum over tokens up over all processes, in place.

        Args:
            total (`torch.Tensor`): this process's sum.
            site (`int`): where it was taken.
            of (`str`): what it is of.

        Raises:
            ValueError: it is not finite: what was added overflowed. A factorization of it might not notice.
        """
        self.processes.sum_(total)
        if not total.sum().isfinite():
            raise ValueError(
                f"{of} at {self.dense.site_name(site)} are not finite in {self.dtype}; the model is unchanged. "
                "Calibrate with a wider dtype, or look for weights that are not finite."
            )

    def agreed(self, tensor: Tensor) -> Tensor:
        """Returns the first process's tensor in all processes: machines differ in how they round."""
        return self.processes.agreed(tensor)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time that a computation takes to a phase of the run."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start

    def _storage_phase(self, name):
        return self.phase(name) if self.storage.on_disk else nullcontext()

    def progress(self, items: Iterable, phase: str, unit: str = "step", **options: Any) -> Iterator:
        """Yields items, and shows in the first process how many are done, see [`track`]."""
        return track(items, phase, unit, shown=self.processes.is_first, **options)


class Run(Computation):
    """
    A run that fills a sliced model, step by step. After each step, `state` holds everything that the remaining steps
    need, so that a run can be saved there and resumed.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        plan ([`SlicePlan`]): what to keep.
        batches ([`TokenBatches`]), config ([`SliceGPTConfig`]), storage ([`Storage`]): see [`Computation`].
        estimate (callable): returns the estimated seconds of every phase.

    Attributes:
        sliced ([`Decoder`]): the model of a sliced class, in which weights are computed.
        result (`PreTrainedModel`): the result, which has values as far as steps are done: that model, or a stock model
            that takes over its weights after each step.
        state ([`State`]), done (`int`): what the remaining steps need, and how many are done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: SlicePlan,
        batches: TokenBatches,
        config: SliceGPTConfig,
        storage: Storage,
        estimate: Callable[[], dict[str, float]],
    ):
        self.plan, self.sliced = plan, Decoder(build_sliced(model, plan))
        self._form = None if plan.stock_size is None else StockForm(self.sliced, plan.stock_size)
        super().__init__(model, batches, config, storage)
        settings = {name: getattr(config, name) for name in SETTINGS}
        data = [batches.batches, batches.groups]
        self.processes.check_alike({"widths": plan, "settings": settings, "calibration data": data})
        adopt_untouched(self.dense, self.sliced)
        self.done, self._count, self._forecast, self._shown = 0, 0, Forecast(estimate), True

    def start_or_resume(self) -> None:
        """Starts the run, or resumes it from the state that the storage has."""
        stream, saved = self.start(), self.storage.restore(self.device)
        if saved is None:
            self._begin(stream)
        else:
            self.done, self.state = saved["done"], State.from_dict(saved["state"])
            for phase, seconds in self.seconds.items():
                self.state.seconds[phase] += seconds
            self.seconds = self.state.seconds
            resize_mlps(self.sliced, self.state.neurons)
        self.storage.allocate(self.result)

    def join(self, other: Run) -> None:
        """Starts beside a run that has measured the same model, with what it has; that one shows how far both are."""
        self._shown = False
        self.batches = other.batches
        self._begin(list(other.state.x))
        self.state.statistics = replace(other.state.statistics)
        self.storage.allocate(self.result)

    def _begin(self, stream: list) -> None:
        neurons = [self.plan.neurons] * len(self.dense.layers)
        generator = torch.Generator().manual_seed(self.config.seed or 0)
        self.state = State(x=stream, z=[], neurons=neurons, generator=generator, seconds=self.seconds)

    @property
    def result(self) -> PreTrainedModel:
        return self.sliced.model if self._form is None else self._form.model

    def steps(self, items: Iterable, phase: str | None = None, unit: str = "step") -> Iterator:
        """
        Yields the items whose step is not done yet, and commits each when the next one is asked for.

        Args:
            items (`Iterable`): one for each step; always the same ones in a run and in those that resume it.
            phase (`str`, *optional*): one of the estimate's, which is shown.
            unit (`str`): what a step of it is called.
        """
        items = list(items)
        first, self._count = self._count, self._count + len(items)
        done = min(max(0, self.done - first), len(items))
        left = items[done:]
        if phase and left and self._shown:
            seconds_left = self._forecast.begin(phase, done / len(items))
            left = self.progress(left, phase, unit, done=done, seconds_left=seconds_left)
        for item in left:
            yield item
            self.done += 1
            if self._form is not None:
                with self.phase("compose"):
                    self._form.settle()
                    release_values(self.sliced.model)
            with self._storage_phase("write"):
                self.storage.commit(self.result, self.state.to_dict(), self.done)
            release_freed_memory()

    def single_step(self, phase: str | None = None) -> Iterator:
        """Yields once, as the one item of a step, unless that step is done."""
        return self.steps([None], phase)

    @contextmanager
    def layer(self, index: int) -> Iterator[list[BlockPair]]:
        """Loads a layer of the dense model, and returns its blocks."""
        name = self.dense.layer_name(index)
        with self.loaded(name):
            self.adopt(name)
            yield pair_blocks(self.dense, self.sliced, index)

    def final_norm(self) -> NormPair:
        """Returns the final norm, which the head reads."""
        norms = self.dense.final_norm, self.sliced.final_norm
        return NormPair(self.dense.num_sites - 1, *norms, [(self.dense.head, self.sliced.head)])

    def adopt(self, *names: str) -> None:
        """Shares with the sliced model what slicing leaves as it is in modules that are loaded."""
        adopt_untouched(self.dense, self.sliced, names)

    def set_neurons(self, neurons: list[int]) -> None:
        """Makes room for another number of neurons in the MLP of each layer of the sliced model."""
        self.state.neurons = neurons
        resize_mlps(self.sliced, neurons)
        self.storage.allocate(self.result)

    @property
    def at_rest(self) -> Tensor:
        """An empty tensor of the dtype and on the device that all weights on the sliced stream have between steps."""
        return torch.empty(0, dtype=self.dense.model.dtype, device=self.storage.home)

    def orient(self, axes: Tensor) -> Tensor:
        """
        Returns axes `(D, k)` of the same span: near to dimensions where norms are behind the blocks, turned at random
        if the settings say so, or, where head and embedding share a narrow matrix, such that the gains of the final
        norm are a diagonal matrix along them.
        """
        if self.dense.family.post_norms:
            return aligned_axes(axes)
        if self.config.orientation == "random":
            return axes @ random_orthogonal(axes.shape[1], self.state.generator, axes.device)
        if self.plan.embeddings == "narrow":
            with self.loaded(self.dense.final_norm_name):
                gains = axes.T @ reader_map(self.dense.final_norm, self.dense.family.gain_offset, axes)
            return axes @ torch.linalg.eigh(gains).eigenvectors
        return axes

    def outcome(self) -> SlicedResult:
        return SlicedResult(self.result, self.state.energy_kept, dict(self.seconds))
