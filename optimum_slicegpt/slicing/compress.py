"""
SliceGPT, block by block: statistics -> axes -> fit -> write. Notation and pictures: docs/how_it_works.md.

x is the dense stream, D wide, z the sliced one, k wide. A site is where a norm reads the stream. The basis of a site
has two matrices (D, k): weights that read the stream are multiplied by `read`, weights that write to it by `write`.
Equations and figures are those of the paper (https://arxiv.org/abs/2401.15024).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..modeling.contexts import evaluating, undisturbed
from ..storage.base import InMemory
from .costs import estimate_phases
from .methods.energy import EnergyNeurons, UniformNeurons
from .methods.fisher import FisherMetric, PlainMetric
from .methods.per_block import per_block_axes
from .methods.refit import Refit
from .methods.rotate import Rotate
from .methods.shared import SharedAxes
from .run import Run
from .state import SlicedResult
from .statistics import measuring_steps
from .streams import DenseStream, SlicedStream
from .writing import write_deep_writers, write_embeddings, write_head, write_readers, write_shortcut, write_writers


if TYPE_CHECKING:
    from ..configuration import SliceGPTConfig
    from ..data.batches import TokenBatches
    from ..planning.widths import SlicePlan
    from ..storage.base import Storage


METRICS = {"none": PlainMetric, "fisher": FisherMetric}
"""`config.metric`: how a deviation of the stream is weighted."""
AXES = {"per_block": per_block_axes, "shared": SharedAxes}
"""`config.rotation`: which directions of the stream are kept."""
NEURONS = {"uniform": UniformNeurons, "energy": EnergyNeurons}
"""`config.schedule`: how many neurons each MLP keeps."""
FITS = {False: Rotate, True: Refit}
"""`config.refit`: what the remaining weights become."""


@undisturbed()
def compress(
    model: PreTrainedModel,
    plans: list[SlicePlan],
    batches: TokenBatches,
    config: SliceGPTConfig,
    storage: Storage | None = None,
) -> list[SlicedResult]:
    """
    Slices a model to one size or several. The dense model is read, never changed. What it alone determines, statistics
    and the dense stream, is computed once.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        plans (`list[SlicePlan]`): for every size, width at every site, and neurons.
        batches ([`TokenBatches`]): the same in all processes, which share them out, and which all get the result.
        config ([`SliceGPTConfig`]): rotation, refit, metric, schedule, orientation, seed, device, dtype.
        storage ([`Storage`], *optional*): where weights and activations are: in memory, unless there is one plan.

    Raises:
        ConnectionError, ValueError: another process has failed; activations are not finite; processes differ.
    """
    estimate = partial(estimate_phases, model, plans[0], config, batches.ntokens, len(set(batches.groups)))
    storage, streams = storage or InMemory(model, config), []
    runs = [Run(model, plan, batches, config, storage, estimate) for plan in plans]
    turns = sorted(runs, key=lambda run: run.plan.whole)  # The first one measures for all: not one that need not.
    with evaluating(model):
        for _ in zip_longest(*(slice_in_turns(run, turns[0], streams) for run in turns)):
            pass
    return [run.outcome() for run in runs]


def slice_in_turns(run: Run, first: Run, streams: list[DenseStream]) -> Iterator[None]:
    """Slices, and pauses once statistics are there, and after each layer, for other runs to take their turn."""
    config = run.config
    metric, neurons, fit = METRICS[config.metric](run), NEURONS[config.schedule](run), FITS[config.refit](run)
    axes = AXES[config.rotation](run, metric, fit)
    parts = metric, neurons, axes, fit
    x = DenseStream(run, any(part.needs_dense_stream for part in parts), streams)
    z = next((part.sliced_stream for part in (axes, fit) if part.sliced_stream), SlicedStream)(run)

    # Each item of `run.steps` is done once: a run that resumes skips it, and its state is saved before the next one.
    if run is first:
        run.start_or_resume()
        for measure in run.steps(measuring_steps(run, parts), "Measuring", "layer"):
            measure()
    else:
        run.join(first)
    yield
    for part in run.steps([part for part in parts if part.decides], "Deciding"):
        part.decide()

    for _ in run.single_step():
        run.state.basis = axes.find(0, None, x, z)
        write_embeddings(run, run.state.basis)  # equation 3
        z.start(x, run.state.basis)
    for index in run.steps(range(len(run.dense.layers)), "Slicing", "layer"):
        with run.layer(index) as blocks:
            for block in blocks:
                here = run.state.basis
                for norm in block.norms():
                    write_readers(run, norm, fit.readers(norm, here, x, z))  # equation 4
                x.advance(block)  # the dense stream, one block on
                z.enter(block, here)  # for axes that are found on it: the paper's
                there = axes.find(block.site + 1, here, x, z)  # equation 8; k of D axes, equation 9
                write_writers(run, block, there, x)  # equations 5 and 6
                write_deep_writers(run, block.site + 1, there)
                shortcut = write_shortcut(run, block, here, there)  # figure 4
                fit.writers(block, there, shortcut, x, z)  # they follow x; fewer neurons
                z.leave(block, here, there, shortcut)
                run.state.basis = there
        yield
    for _ in run.single_step("Head"):
        write_head(run, run.final_norm(), run.state.basis, fit, x, z)  # equation 7
