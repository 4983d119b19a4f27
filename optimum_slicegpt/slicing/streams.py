"""The stream of every calibration batch on its way through the layers: x of the dense model, z of the sliced one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
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
    from .run import Run


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
    """

    real: dict[str, Tensor] | None
    layer_kwargs: list[dict]
    inputs: dict[str, Tensor]
    place: Place = Place()

    def tokens(self, values: Tensor, sampled: slice = slice(None)) -> Tensor:
        """Returns values `(B, T, ...)` of positions that are no padding, all or the `sampled`, as `(tokens, ...)`."""
        values = values.flatten(0, 1)
        return values[sampled] if self.real is None else values[self.real[values.device.type][sampled]]


def first_stream(
    dense: Decoder, inputs: dict[str, Tensor], place: Place, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Batch]:
    """
    Computes the stream at the first site of a dense model, and records what its layers are called with.

    Args:
        dense ([`Decoder`]): the dense model; its tables and what positions need are on the device.
        inputs (`dict[str, torch.Tensor]`): `input_ids` `(B, T)`, perhaps `attention_mask` `(B, T)`, perhaps images.
        place ([`Place`]): of the batch.
        device (`torch.device`), dtype (`torch.dtype`): in which the layers will compute.

    Returns:
        `tuple`: the stream `(B, T, D)`, centred where the family's norms would do that, and its [`Batch`].
    """
    family = dense.family
    names = tuple(inspect.signature(dense.layers[0].forward).parameters)[1:]
    calls = []

    def record(hidden_states, *args, **kwargs):
        calls.append((hidden_states, args, kwargs))
        return (hidden_states, None) if family.returns_tuple else hidden_states

    mask, inputs = inputs.get("attention_mask"), send_to_device(inputs, device)
    with layers_replaced(dense, record):
        dense.front(**_cast(inputs, dense.model.dtype), use_cache=False)
    stream = calls[0][0].to(dtype, copy=True)
    if family.layer_norm:
        stream -= stream.mean(-1, keepdim=True)
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    real = None
    if mask is not None:
        positions = mask.to("cpu").flatten().nonzero().squeeze(1)
        real = {"cpu": positions, device.type: positions.to(device)}
    layer_kwargs = [dict(zip(names, args, strict=False)) | kwargs for _, args, kwargs in calls]
    return stream, Batch(real, _cast(layer_kwargs, dtype), inputs, place)


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
                streams = dense.layer_streams(index, stream, batch.layer_kwargs[index])
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
