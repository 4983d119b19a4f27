"""The stream of every calibration batch on its way through the layers: x of the dense model, z of the sliced one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import recursively_apply, send_to_device
from torch import Tensor

from ..linalg.moments import root_mean_square
from ..modeling.contexts import inputs_seen, layers_replaced, placed
from ..modeling.weights import eps_of
from .parts import timed
from .places import Place
from .state import Basis


if TYPE_CHECKING:
    from ..modeling.decoder import Decoder
    from .pairs import BlockPair
    from .run import Computation, Run


@dataclass
class Batch:
    """
    One calibration batch, as its layers see it.

    Args:
        real (`dict[str, torch.Tensor]`, *optional*):
            the positions `(tokens,)` that are no padding, among all `B * T` of the batch, where layers compute and in
            host memory, by the type of the device; `None` for all. They are numbers because the shape of what a mask
            picks is known only when a device has done all its work.
        layer_kwargs (`list[dict]`): the arguments of every decoder layer: mask, positions.
        inputs (`dict[str, torch.Tensor]`): the tokens, and their mask if there is one, where layers compute.
        place ([`Place`]): among all calibration tokens.
        joining (`dict[int, Any]`):
            What the model itself adds to the dense stream at sites behind layers, if it does: a tensor `(B, T, D)` for
            each such site, as `run.keep` has it.
    """

    real: dict[str, Tensor] | None
    layer_kwargs: list[dict]
    inputs: dict[str, Tensor]
    place: Place = Place()
    joining: dict[int, Any] = field(default_factory=dict)

    def tokens(self, values: Tensor, sampled: slice = slice(None)) -> Tensor:
        """Returns values `(B, T, ...)` of positions that are no padding, all or the `sampled`, as `(tokens, ...)`."""
        values = values.flatten(0, 1)
        return values[sampled] if self.real is None else values[self.real[values.device.type][sampled]]

    def joined(self, site: int, stream: Tensor, matrix: Tensor | None = None) -> Tensor:
        """
        Adds to a stream what joins it at a site, in the basis of the stream.

        Args:
            site (`int`): where it joins.
            stream (`torch.Tensor` of shape `(B, T, k)`): as the blocks before the site leave it.
            matrix (`torch.Tensor` of shape `(D, k)`, *optional*): by which weights are multiplied that write it.
        """
        if site not in self.joining:
            return stream
        joining = self.joining[site].to(stream.device)
        return stream + (joining if matrix is None else joining @ matrix.to(joining))

    def layer_streams(self, dense: Decoder, index: int, stream: Tensor) -> list[Tensor]:
        """Computes the dense stream at each site behind a block of a layer, see [`Decoder.layer_streams`]."""
        *between, after = dense.layer_streams(index, stream, self.layer_kwargs[index])
        return [*between, self.joined((index + 1) * len(dense.family.blocks), after)]


def first_stream(run: Computation, inputs: dict[str, Tensor], place: Place) -> tuple[Any, Batch]:
    """
    Computes the stream at the first site of a dense model, and records what its layers are called with.

    Args:
        run ([`Computation`]): whose dense model it is; its tables and what positions need are where it computes.
        inputs (`dict[str, torch.Tensor]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`, perhaps images.
        place ([`Place`]): of the batch.

    Returns:
        `tuple`: the stream `(B, T, D)`, as `run.keep` has it, centred where the family's norms would do that, and its
        [`Batch`].
    """
    dense, device, dtype = run.dense, run.device, run.dtype
    family = dense.family
    names = tuple(inspect.signature(dense.layers[0].forward).parameters)[1:]
    calls, returned = [], []

    def record(hidden_states, *args, **kwargs):
        calls.append((hidden_states, args, kwargs))
        returned.append(hidden_states.new_zeros(1).expand_as(hidden_states))
        return (returned[-1], None) if family.returns_tuple else returned[-1]

    mask, inputs = inputs.get("attention_mask"), send_to_device(inputs, device)
    with layers_replaced(dense, record), inputs_seen([dense.final_norm]) as seen:
        dense.front(**_cast(inputs, dense.model.dtype), use_cache=False)
    # Layers return zeros, so what is received behind one is what the model itself adds there.
    received = [*(stream for stream, _, _ in calls), seen[dense.final_norm]]
    behind = [
        index for index, zeros in enumerate(returned, 1) if received[index] is not zeros and received[index].any()
    ]
    streams = [received[index].to(dtype, copy=True) for index in (0, *behind)]
    first, *joining = map(run.keep, dense.site_streams(streams, streams[0]))
    sites = [index * len(family.blocks) for index in behind]
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    real = None
    if mask is not None:
        positions = mask.to("cpu").flatten().nonzero().squeeze(1)
        real = {"cpu": positions, device.type: positions.to(device)}
    layer_kwargs = [dict(zip(names, args, strict=False)) | kwargs for _, args, kwargs in calls]
    batch = Batch(real, _cast(layer_kwargs, dtype), inputs, place, dict(zip(sites, joining, strict=True)))
    return first, batch


def padded_behind(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Moves the padding of a batch behind its tokens. Where positions are numbers of columns, as in GPT-2, padding in
    front of tokens would change their positions.
    """
    if "attention_mask" not in inputs:
        return inputs
    order = (inputs["attention_mask"] == 0).int().argsort(stable=True)
    return {key: value.gather(1, order) if value.shape == order.shape else value for key, value in inputs.items()}


def _cast(arguments: Any, dtype: torch.dtype) -> Any:
    """Casts floating tensors, wherever they are in some arguments; a tensor that layers share stays shared."""
    casts = {}

    def cast(value):
        if not value.is_floating_point():
            return value
        if id(value) not in casts:
            casts[id(value)] = _clamp_to_dtype(value, dtype)
        return casts[id(value)]

    return recursively_apply(cast, arguments)


def _clamp_to_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts a tensor to a dtype, and clamps it to the dtype's range, so that a mask's least number stays finite."""
    bounds = torch.finfo(dtype)
    if bounds.max < torch.finfo(value.dtype).max:
        value = value.clamp(bounds.min, bounds.max)
    return value.to(dtype)


@dataclass
class Outputs:
    """
    What the writers of a dense block put out, y, where a norm is behind them.

    Args:
        values (`list`): a tensor `(B, T, D)` for each batch, as `run.keep` has it.
        energy (`torch.Tensor` of shape `(D,)`, float64): mean over tokens of `y² / r²`, r the root mean square of y.
    """

    values: list
    energy: Tensor

    @classmethod
    def none(cls, run: Run) -> Outputs:
        """Returns outputs of no batch, on the device that computes."""
        return cls([], torch.zeros(run.dense.config.hidden_size, dtype=torch.float64, device=run.device))


class DenseStream:
    """
    The dense stream x: `values` holds a tensor `(B, T, D)` for each batch, as `run.keep` has it.

    Args:
        run ([`run.Run`]): whose state holds the values.
        followed (`bool`): whether any part depends on the stream after the first site. If none does, it is forgotten.
        together (`list[DenseStream]`):
            Those of other runs over the same model, side by side; joined by this one. Each layer is computed once.

    Attributes:
        outputs ([`Outputs`], *optional*): of the last block, if a norm is behind it.
    """

    def __init__(self, run: Run, followed: bool, together: list[DenseStream]):
        self.run, self._followed, self._after_blocks, self.outputs = run, followed, [], None
        self._together = together
        together.append(self)

    @property
    def values(self) -> list:
        return self.run.state.x

    def advance(self, block: BlockPair) -> None:
        """Takes the stream through a block. At the first block of a layer the whole layer is computed."""
        if not self._followed:
            self.run.state.x = []
            return
        if not self._after_blocks:
            after = self._through_layer(block)
            for each in self._together:
                each._after_blocks = [(list(values), outputs) for values, outputs in after]
        self.run.state.x, self.outputs = self._after_blocks.pop(0)

    @timed("forward")
    def _through_layer(self, block: BlockPair) -> list[tuple[list, Outputs | None]]:
        """Computes the stream after each block of a layer, and the block's outputs if a norm is behind them."""
        run, dense, index = self.run, self.run.dense, block.index
        blocks = dense.blocks_of(index)
        after = [([], None if each.post_norm is None else Outputs.none(run)) for each in blocks]
        behind = [(each.post_norm, outputs) for each, (_, outputs) in zip(blocks, after, strict=True) if outputs]
        with placed(block.dense.layer, run.device, run.dtype), inputs_seen([norm for norm, _ in behind]) as seen:
            for batch, value in zip(run.batches, self.values, strict=True):
                stream = value.to(run.device)
                streams = batch.layer_streams(dense, index, stream)
                for (values, _), each in zip(after, dense.site_streams(streams, stream), strict=True):
                    values.append(run.keep(each))
                for norm, outputs in behind:
                    outputs.values.append(run.keep(seen[norm]))
                    tokens = batch.tokens(seen[norm])
                    tokens = tokens * (batch.place.weight / root_mean_square(tokens, eps_of(norm, dense.family)))
                    outputs.energy += tokens.double().square().sum(0) / run.num_tokens
        for each, (_, outputs) in zip(blocks, after, strict=True):
            if outputs is not None:
                run.sum_(outputs.energy, each.site + 1)
        return after


class SlicedStream:
    """
    The sliced stream z: `values` holds a tensor for each batch. This class does not update the stream; parts that read
    it name a subclass that does.
    """

    def __init__(self, run: Run):
        self.run = run

    @property
    def values(self) -> list:
        return self.run.state.z

    def start(self, x: DenseStream, basis: Basis) -> None:
        """Starts the stream `(B, T, k)` at the first site, whose basis is known by now."""

    def enter(self, block: BlockPair, here: Basis) -> None:
        """
        Takes the stream into a block, whose readers are written, at least up to what its writers read. The writers are
        not written yet, and may hold anything afterwards.
        """

    def leave(self, block: BlockPair, here: Basis, there: Basis, shortcut: Tensor | None) -> None:
        """Takes the stream to the next site. Writers and shortcut are written."""
