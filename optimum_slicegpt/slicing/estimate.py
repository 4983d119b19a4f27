"""Estimates what a run will take before it starts: memory, disk, passes over the weights, and roughly its time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ..configuration import SliceGPTConfig
from ..planning.machine import Machine, Room, room_for
from ..planning.sizes import flops_per_token
from .costs import Costs, seconds_for
from .footprint import BATCH, LOSS, REGRESSION, TRAINING, WEIGHTS_AT_ONCE, Footprint


if TYPE_CHECKING:
    from ..planning.widths import SlicePlan


LIBRARIES = 500 * 2**20
"""Bytes of resident memory once everything is imported; a device keeps about as much for its kernels."""

WEIGHTS, ACTIVATIONS = "dense and sliced weights", "activations and moments"
REGRESSION_MOVED = f"{REGRESSION} instead of the device"
"""What takes memory, beside the libraries and what [`footprint`] names."""

DEVICE_REMEDIES = {
    ACTIVATIONS: "--offload-activations",
    BATCH: "a smaller --batch-size",
    TRAINING: "--refine 0",
    LOSS: "another --metric",
}
STREAMING_REMEDIES = DEVICE_REMEDIES | {ACTIVATIONS: "a smaller --max-memory"}
STREAMING_REMEDIES |= dict.fromkeys([REGRESSION, REGRESSION_MOVED], "--no-refit")
MEMORY_REMEDIES = STREAMING_REMEDIES | {WEIGHTS: "--stream", ACTIVATIONS: "--stream"}
DISK_REMEDIES = {"result": "another --output", "beside it": "fewer --nsamples, or a larger --max-memory"}
"""How to make smaller what takes memory or disk."""


@dataclass(frozen=True)
class RunEstimate:
    """
    The estimated cost of a run.

    Args:
        passes (`list[str]`): what each pass over the weights is for.
        parameters_before (`int`): of the dense model.
        parameters_after (`int`): of the sliced one.
        hidden_size (`int`), all_neurons (`int`, *optional*): of the dense model; `None` where experts keep theirs.
        widths (`list[int]`): one per site.
        neurons (`int`, *optional*): neurons that each MLP keeps, `None` for all.
        bytes_read (`int`): of the checkpoint, in all passes.
        bytes_written (`int`): of the sliced checkpoint.
        bytes_beside (`int`): of files that are needed while streaming, at most.
        bytes_per_step (`int`): of the state that streaming saves after each layer.
        memory (`dict[str, int]`): bytes of host memory at the peak, by what takes them.
        device_memory (`dict[str, int]`): the same of a device that has its own memory; empty where none computes.
        device_memory_beside_regressions (`dict[str, int]`): the same where regressions are in host memory.
        bytes_of_regression (`int`): of the largest regression; 0 without a refit.
        flops (`dict[str, float]`): floating point operations, by the dtype in which they are done.
        forwards (`float`): as many operations, in forwards of the dense model over the text.
        seconds (`float`, *optional*):
            For these, as fast as this machine does work of these kinds and sizes. Reading and writing come on top.
            `None` where the device is not here, or is not tried.
    """

    passes: list[str]
    parameters_before: int
    parameters_after: int
    hidden_size: int
    all_neurons: int | None
    widths: list[int]
    neurons: int | None
    bytes_read: int
    bytes_written: int
    bytes_beside: int
    bytes_per_step: int
    memory: dict[str, int]
    device_memory: dict[str, int]
    device_memory_beside_regressions: dict[str, int]
    bytes_of_regression: int
    flops: dict[str, float]
    forwards: float
    seconds: float | None

    def rooms(self, machine: Machine) -> dict[str, Room]:
        """
        Compares what the run needs with what a machine has, place by place. Regressions for which the device has no
        room are in host memory.
        """
        device, host = dict(self.device_memory), dict(self.memory)
        if machine.device is not None and sum(device.values()) > machine.device and self.bytes_of_regression:
            device, host[REGRESSION_MOVED] = self.device_memory_beside_regressions, self.bytes_of_regression
        remedies = MEMORY_REMEDIES if WEIGHTS in self.memory else STREAMING_REMEDIES
        places = {
            "device memory": (device, machine.device, DEVICE_REMEDIES),
            "host memory": (host, machine.host, remedies),
            "disk": ({"result": self.bytes_written, "beside it": self.bytes_beside}, machine.disk, DISK_REMEDIES),
        }
        return {name: room_for(*place) for name, place in places.items() if place[0]}


def estimate_run(
    model: PreTrainedModel,
    plan: SlicePlan,
    config: SliceGPTConfig,
    tokens: int,
    tokens_per_batch: int,
    max_memory: int | None = None,
    groups: int = 1,
    timed: bool = True,
) -> RunEstimate:
    """
    Estimates what a run will take.

    Args:
        model (`PreTrainedModel`): the dense model; `meta` tensors will do.
        plan ([`SlicePlan`]): what is kept.
        config ([`SliceGPTConfig`]): how to slice.
        tokens (`int`): of the calibration data.
        tokens_per_batch (`int`): of the largest batch.
        max_memory (`int`, *optional*):
            Bytes of activations and moments in memory, where the model is streamed. It is in memory by default.
        groups (`int`, defaults to 1): kinds of text.
        timed (`bool`): whether to estimate the time, for which the device is tried for some seconds.
    """
    costs = Costs(model, plan, config, tokens, tokens_per_batch, groups)
    streaming, dense = max_memory is not None, sum(each.nbytes for each in model.parameters())
    after, device = plan.num_parameters(model), torch.device(config.device or "cpu")
    written = after * model.dtype.itemsize
    kept = {ACTIVATIONS: min(costs.kept, max_memory) if streaming else costs.kept}
    footprint = Footprint(costs, min(config.seqlen, tokens_per_batch))
    memory, device_memory, beside_regressions = {"libraries": LIBRARIES}, {}, {}
    if device.type != "cpu":
        offloaded = streaming or config.offload_activations
        beside = {"libraries": LIBRARIES} | ({} if offloaded else kept)
        device_memory = beside | footprint.largest_step("device")
        beside_regressions = beside | footprint.largest_step("device", without=[REGRESSION])
        memory |= {WEIGHTS_AT_ONCE: footprint.weights_at_once} if streaming else {WEIGHTS: dense + written}
        memory |= kept if offloaded else {}
    elif streaming:
        memory |= kept | footprint.largest_step("host")
    else:
        memory |= {WEIGHTS: dense + written} | kept | footprint.largest_step(None)
    flops, work = Counter(), [each for phase in costs.work().values() for each in phase]
    for each in work:
        flops[each.counted_dtype] += each.flops
    return RunEstimate(
        passes=costs.passes,
        parameters_before=model.num_parameters(),
        parameters_after=after,
        hidden_size=plan.hidden_size,
        all_neurons=None if costs.dense.family.keeps_neurons else costs.dense.num_neurons,
        widths=list(plan.widths),
        neurons=plan.neurons,
        bytes_read=(len(costs.passes) if streaming else 1) * dense,
        bytes_written=written,
        bytes_beside=2 * costs.state + costs.moments + max(0, costs.activations - max_memory) if streaming else 0,
        bytes_per_step=costs.state if streaming else 0,
        memory=memory,
        device_memory=device_memory,
        device_memory_beside_regressions=beside_regressions,
        bytes_of_regression=footprint.regression,
        flops=dict(flops),
        forwards=sum(flops.values()) / (tokens * flops_per_token(costs.dense)),
        seconds=seconds_for(work, device) if timed else None,
    )
