"""
`refine=steps`: once its writer is fitted, each MLP is trained for some steps to add to the stream what is missing.

The regression of `refit.py` finds the best writer. What stands before the nonlinearity, the readers, it cannot change
for the neurons that are gone. With z the sliced stream before the MLP and y what is missing behind it,

    min over readers and writer of  Σ |y - mlp(norm(z))|²,    Adam from the weights of the regression,

where errors are divided by the root mean square of the dense stream. A norm behind the MLP is part of it, and stays.

A token costs one pass through one MLP, forward and backward, instead of one through the whole model. What has been
trained is kept if it serves the held-out tokens of every kind of text better.

References:
    - Kingma and Ba (2015), Adam: a method for stochastic optimization.
    - Li et al. (2021), BRECQ: Pushing the limit of post-training quantization by block reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...modeling.contexts import placed


if TYPE_CHECKING:
    from ...configuration import SliceGPTConfig
    from ...modeling.decoder import Decoder
    from ..pairs import BlockPair
    from ..run import Run


STEP_TOKENS = 2048
"""Tokens of a step, of all processes together."""

STEPS, ENOUGH_TOKENS, MOST_STEPS = 30, 32 * 1024, 120
"""
Steps by default, and the tokens from which on there are more, in proportion, up to the greatest number. Measured on
SmolLM2: with these tokens twice as many steps gain a hundredth of the loss, with four times the tokens four times as
many gain a twelfth.
"""

PASSES, EPOCHS = 2, 4
"""
Times that each token is taken where there are enough of them, which halves the memory that they need; and where there
are not, the greatest number of times: fewer tokens are learned by heart.
"""

LEARNING_RATE = 1.5e-2
"""Largest learning rate, as a share of the root mean square of the matrix that is trained."""

WARM_UP = 4
"""Steps after which the learning rate is largest. From there it falls along a cosine to a twentieth."""

TOKENS_AT_ONCE = 4096
"""Held-out tokens that go through an MLP at once."""


@dataclass
class Goal:
    """
    Tokens of one kind of text on their way through an MLP.

    Args:
        stream (`torch.Tensor` of shape `(tokens, k)`): the sliced stream before the MLP.
        y (`torch.Tensor` of shape `(tokens, k')`): what the MLP should write.
        weight (`torch.Tensor` of shape `(tokens, 1)`): by which errors are multiplied.
        held_out (`torch.Tensor` of shape `(tokens,)`, bool, on the CPU): tokens that are not trained on.
        group (`int`): kind of text.
    """

    stream: Tensor
    y: Tensor
    weight: Tensor
    held_out: Tensor
    group: int


def number_of_steps(asked: int | None, tokens: int) -> int:
    """
    Returns how many steps a calibration has tokens for: as many as are asked for, or as pay.

    Examples:
        >>> number_of_steps(40, tokens=32 * 1024), number_of_steps(40, tokens=8 * 1024)
        (40, 16)
        >>> number_of_steps(None, tokens=32 * 1024), number_of_steps(None, tokens=128 * 2048)
        (30, 120)
    """
    if asked is None:
        asked = min(max(STEPS, STEPS * tokens // ENOUGH_TOKENS), MOST_STEPS)
    return min(asked, EPOCHS * tokens // STEP_TOKENS)


def steps_of(config: SliceGPTConfig, dense: Decoder, tokens: int) -> int:
    """Returns for how many steps a run trains each MLP but those of experts: none if there are no others."""
    trains = config.refit and any(block.has_dense_mlp for block in dense.blocks())
    return number_of_steps(config.refine, tokens) if trains else 0


def tokens_of(steps: int) -> int:
    """Returns the number of tokens that so many steps take, each of them [`PASSES`] times."""
    return steps * STEP_TOKENS // PASSES


class Refinement:
    """
    The training of one MLP.

    Args:
        run ([`run.Run`]): the run.
        block ([`BlockPair`]): the block that has the MLP; its readers and writers hold what they were fitted to.
        goals (`list[Goal]`): this process's tokens.
    """

    def __init__(self, run: Run, block: BlockPair, goals: list[Goal]):
        self._run, self._layer = run, block.sliced.layer
        self._weights = [*run.sliced.mlp_readers(block.index), run.sliced.mlp_writer(block.index)]
        self._generator = torch.Generator().manual_seed(block.index)
        # Adam's steps would vanish in the rounding of a half precision, products need no more.
        self._half = run.dtype.itemsize == 2
        self._dtype = torch.float32 if self._half else run.dtype
        # A process may have no tokens of a kind.
        sizes = (self._weights[0].weight.shape[-1], run.dtype), (self._weights[-1].weight.shape[-1], None), (1, None)
        nothing = [torch.empty(0, width, dtype=dtype, device=run.device) for width, dtype in sizes]
        kinds = [[nothing] for _ in range(1 + run.num_groups)]  # fitted, and held out of each group
        for goal in goals:
            held_out, counts = goal.held_out.unique_consecutive(return_counts=True)
            parts = zip(*(values.split(counts.tolist()) for values in (goal.stream, goal.y, goal.weight)), strict=True)
            for kind, part in zip(held_out.tolist(), parts, strict=True):
                kinds[kind * (1 + goal.group)].append(part)
        self._fitted, *self._held_out = [list(map(torch.cat, zip(*parts, strict=True))) for parts in kinds]

    def train(self, steps: int) -> bool:
        """
        Trains readers and writer, and stores what they have become if every kind of text is served better.

        Returns:
            `bool`: whether it is.
        """
        with placed(self._layer, self._run.device, self._dtype):
            before = self._held_out_errors()
            if not before.all():  # A kind of text has no held-out token, so nothing could be judged better.
                return False
            with torch.enable_grad():
                self._optimise(steps)
            if not (self._held_out_errors() < before).all():
                return False
            trained = [weight.weight.detach().clone() for weight in self._weights]
        for weight, values in zip(self._weights, trained, strict=True):
            weight.set(self._run.agreed(values), like=weight.weight)
        return True

    def _optimise(self, steps):
        parameters = [getattr(weight.module, weight.key) for weight in self._weights]
        for parameter in parameters:
            parameter.data = parameter.data.clone()  # It may be the stored tensor, where nothing was converted.
        rates = [LEARNING_RATE * parameter.detach().square().mean().sqrt().item() for parameter in parameters]
        groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(parameters, rates, strict=True)]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
        for chosen in self._tokens_of_steps(steps):
            with self._products():
                error = self._squared_error(*(values[chosen] for values in self._fitted))
            gradients = torch.autograd.grad(error, parameters)
            self._run.processes.sum_(*gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()

    def _products(self):
        # Autocast remembers converted weights to its end, so it must not outlast a step.
        return torch.autocast(self._run.device.type, torch.bfloat16, enabled=self._half)

    def _squared_error(self, stream, y, weight):
        written = self._layer.mlp_output(stream.to(self._dtype))
        return ((written - y) * weight).square().sum()

    def _tokens_of_steps(self, steps):
        """Yields the numbers of the tokens of each step: all tokens once, in random order, then all of them again."""
        size, order = STEP_TOKENS // self._run.processes.count, torch.empty(0, dtype=torch.int64, device="cpu")
        count = len(self._fitted[0])
        for _ in range(steps):
            while 0 < count and len(order) < size:
                order = torch.cat([order, torch.randperm(count, generator=self._generator, device="cpu")])
            yield order[:size].to(self._run.device, non_blocking=True)
            order = order[size:]

    def _held_out_errors(self):
        """Returns the squared error `(groups,)`, float64, on held-out tokens of every kind of text."""
        errors = torch.zeros(self._run.num_groups, dtype=torch.float64, device=self._run.device)
        for group, tokens in enumerate(self._held_out):
            for parts in zip(*(values.split(TOKENS_AT_ONCE) for values in tokens), strict=True):
                with self._products():
                    errors[group] += self._squared_error(*parts)
        self._run.processes.sum_(errors)
        return errors


def _share_of_rate(step, steps):
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
