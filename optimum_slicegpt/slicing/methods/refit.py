"""
`refit=True`, the default: readers and writers are fitted again, and the neurons that cost least are deleted.

Two streams go through the blocks side by side: x of the dense model, z of the sliced one. Each block's readers are
fitted so that they find in z what the dense readers found in x, and its writers so that z follows x, which also
repairs what earlier blocks have lost. With a the inputs of a regression, y its goal and P the weight that the basis
alone determines,

    min over W of  Σ |y - a W|² + s |diag(n) (W - P)|²,    n the norms of the inputs, s chosen on held-out tokens.

- Readers: a = norm(z), y = norm(x), P = (Q / c)ᵀ.
- Writers: a = what the block's writers read in the sliced model (and 1, where they have a bias),
  y = (x after the block) Q c - (z before it) S, S the shortcut; both are divided by the root mean square of x.

Neurons go as Optimal Brain Surgeon deletes weights (Hassibi and Stork, 1993). Repairing the error of the blocks before
follows sequential layer-wise pruning, as in SparseGPT (Frantar and Alistarh, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...linalg.composition import ROWS_AT_ONCE, moved
from ...linalg.moments import add_second_moment_, root_mean_square
from ...linalg.products import mirror_
from ...linalg.regression import LeastSquares, bytes_needed, token_stride
from ...modeling.contexts import placed, room_on
from ...modeling.weights import eps_of
from ...planning.sizes import most_inputs
from ...storage.base import release_freed_memory
from ..parts import Fit, timed
from ..post_norms import PostNorm, set_post_gain
from ..statistics import new_moment
from ..writing import reader_map
from .fitted_stream import FittedStream, residual
from .refine import Goal, Refinement, steps_of, tokens_of


if TYPE_CHECKING:
    from ..pairs import BlockPair
    from ..state import Basis


LEAST_GROWTH = 1e-4
"""Least growth of an output in front of a norm, squared: the gain behind it becomes at most 100 times as large."""


class Refit(Fit):
    """Readers and writers that are fitted by ridge regression, and fewer neurons."""

    needs_dense_stream = True
    sliced_stream = FittedStream

    def __init__(self, run):
        super().__init__(run)
        self._most_inputs = most_inputs(run.dense)
        self._steps = steps_of(run.config, run.dense, run.num_tokens)

    def _regression(self, inputs, outputs):
        """Returns an empty regression: on the device that computes, or in host memory if there is no room for it."""
        device, kinds = self.run.device, (self.run.num_groups, torch.promote_types(self.run.dtype, torch.float32))
        if device.type == "cuda" and bytes_needed(inputs, outputs, *kinds) > room_on(device):
            device = torch.device("cpu")
        return LeastSquares(inputs, outputs, device, *kinds)

    def _add_up(self, regression, site):
        """Adds the sums of all processes up. What the passes over tokens have freed makes room for solving."""
        for products in regression.finish():
            self.run.sum_(products.values, site)
        release_freed_memory()

    # Readers

    def readers(self, norm, here, x, z) -> Tensor:
        prior = here.read.T
        regression = self._regression(*prior.shape)
        self._add_readers(regression, norm, x, z)
        return self._solve(regression, prior).T

    @timed("regression")
    def _add_readers(self, regression, norm, x, z):
        run, stride = self.run, token_stride(regression.num_inputs, self._most_inputs)
        for batch, dense, sliced in zip(run.batches, x.values, z.values, strict=True):
            pair, sample = self._sample_tokens(batch, stride, sliced, dense)
            weight = batch.place.weight
            if norm.dense is None:
                weight = weight / root_mean_square(pair[1])
            else:
                eps = eps_of(norm.dense, run.dense.family)
                pair = [nn.functional.rms_norm(stream, stream.shape[-1:], eps=eps) for stream in pair]
            regression.add(*pair, weight=weight, **sample)
        self._add_up(regression, norm.site)

    def final_gain(self, norm, here, prior, x, z) -> Tensor:
        """
        Fits the gains where the basis makes no diagonal matrix of the dense ones, so that logits are nearest to the
        dense ones: with n and m the outputs of the dense and the sliced norm, G the dense gains, E the shared matrix
        and P its map to k columns, `Σ |E G n - E P diag(γ) m|²` takes no more than the sums of a regression of n on m.
        """
        run = self.run
        if not run.dense.family.post_norms:
            return prior
        regression = self._regression(*here.write.T.shape)
        self._add_readers(regression, norm, x, z)
        device = regression.device
        gains = reader_map(norm.dense, run.dense.family.gain_offset, torch.ones_like(here.axes[:, :1]))[:, 0]
        seen = (here.write.T @ self._table_moment()).to(device)
        write, gains = here.write.to(device), gains.to(device)
        of_gains = LeastSquares(here.width, 1, device, run.num_groups, torch.float64)
        for known, products in zip(of_gains.finish(), regression.finish(), strict=True):
            gram, cross = products.gram() * (seen @ write), seen * gains * products.cross()
            known.add_matrix_(torch.cat([gram, cross.sum(-1, keepdim=True)], -1))
        return self._solve(of_gains, prior[:, None])[:, 0]

    @timed("regression")
    def _table_moment(self):
        """Returns the second moment `(D, D)` of the matrix that embedding and head share."""
        moment = new_moment(self.run)
        for rows in self.run.dense.head.weight.split(ROWS_AT_ONCE):
            add_second_moment_(moment, rows.to(self.run.device))
        mirror_(moment)
        return moment

    @timed("solve")
    def _solve(self, regression, prior):
        return self.run.agreed(regression.solve(prior.to(regression.device)).to(prior.device))

    # Writers

    def writers(self, block, there, shortcut, x, z) -> None:
        if block.keeps_width:
            return  # Experts read different tokens.
        self._fit_writers(block, there, shortcut, x, z)  # whose sums are freed by now
        if self._steps and block.dense.has_dense_mlp:
            self._refine(block, there, shortcut, x, z)

    def _fit_writers(self, block, there, shortcut, x, z):
        run, writers = self.run, block.sliced.writers()
        sizes, scale = [writer.weight.shape[-2] for writer in writers.values()], 1.0
        sizes += [1] * any(writer.bias is not None for writer in writers.values())
        post_norm = PostNorm.behind(block, there, x)
        if post_norm is not None:
            scale = post_norm.scale
        regression = self._regression(sum(sizes), there.width)
        self._add_writers(regression, block, there, shortcut, post_norm, x, z)
        fitted = self._solve(regression, _weights_of_writers(block, there) * scale)
        kept, mlp_writer = run.state.neurons[block.index], run.dense.family.mlp_writer
        if kept is not None and mlp_writer in writers:
            position = list(writers).index(mlp_writer)
            first, count = sum(sizes[:position]), sizes[position]
            fitted, remaining = self._delete_inputs(regression, slice(first, first + count), count - kept, fitted)
            sizes[position] = kept
            self._keep_neurons(block, remaining[first : first + kept] - first, count)
        fitted = fitted / scale
        if post_norm is not None:
            growth = self._divisor_growth(block, post_norm, fitted, x, z)
            set_post_gain(run, block, post_norm.gain / growth)
            fitted = fitted * growth
        _set_writers(block, fitted.split(sizes))

    @timed("regression")
    def _add_writers(self, regression, block, there, shortcut, post_norm, x, z):
        run, stride = self.run, token_stride(regression.num_inputs, self._most_inputs)
        matrix = there.write.to(run.dtype)
        outputs = [] if post_norm is None else [x.outputs.values]
        with z.reading(block) as inputs_of:
            for batch, stream, *values in zip(run.batches, z.values, x.values, *outputs, strict=True):
                stream = stream.to(run.device)
                values = inputs_of(batch, stream), stream, *values
                (given, sliced, dense, *y), sample = self._sample_tokens(batch, stride, *values)
                wanted = self._wanted(batch, stride, block.site + 1, dense, matrix)
                goal = _goal(batch, wanted, dense, sliced, shortcut)
                if post_norm is not None:
                    goal = post_norm.goal(goal["y"], goal["weight"], *y)
                regression.add(given, **goal, **sample)
        self._add_up(regression, block.site + 1)

    @timed("refine")
    def _refine(self, block, there, shortcut, x, z):
        return Refinement(self.run, block, self._goals(block, there, shortcut, x, z)).train(self._steps)

    def _goals(self, block, there, shortcut, x, z):
        run, layer, matrix, goals = self.run, block.sliced.layer, there.write.to(self.run.dtype), []
        stride = max(1, run.num_tokens // tokens_of(self._steps))
        with placed(layer, run.device, run.dtype):
            for batch, sliced, dense in zip(run.batches, z.values, x.values, strict=True):
                beside = []
                if run.dense.family.parallel:  # What the block writes beside its MLP is not the MLP's to write.
                    sliced = sliced.to(run.device)
                    beside.append(block.output(sliced, batch) - layer.mlp_output(sliced))
                (sliced, dense, *beside), sample = self._sample_tokens(batch, stride, sliced, dense, *beside)
                wanted = self._wanted(batch, stride, block.site + 1, dense, matrix) - sum(beside)
                goals.append(Goal(sliced, **_goal(batch, wanted, dense, sliced, shortcut), **sample))
        return goals

    def _wanted(self, batch, stride, site, dense, matrix) -> Tensor:
        """
        Returns what a block and its residual connection should put out together `(tokens, k')`: the dense stream at
        every so many-th token, less what joins it there, along the axes that are kept.
        """
        if site in batch.joining:
            (joining,), _ = self._sample_tokens(batch, stride, batch.joining[site])
            dense = dense - joining
        return dense @ matrix

    @timed("regression")
    def _divisor_growth(self, block, post_norm, fitted, x, z) -> Tensor:
        """
        Fits by how much each output of the writers has to grow, so that the norm behind them divides as it does in the
        dense model: `√ξ` for `r² - eps ≈ Σ ξ_j y'_j² / k`.

        Returns:
            `torch.Tensor` of shape `(k,)`, float64.
        """
        run, matrix, width = self.run, fitted.to(self.run.dtype), fitted.shape[1]
        stride = token_stride(width, self._most_inputs)
        regression = self._regression(width, 1)
        with z.reading(block) as inputs_of:
            for batch, stream, *values in zip(run.batches, z.values, x.values, x.outputs.values, strict=True):
                given = inputs_of(batch, stream.to(run.device))
                (given, dense, outputs), sample = self._sample_tokens(batch, stride, given, *values)
                divisor = post_norm.divisor(outputs)
                shares = (given @ matrix / divisor).square() / width
                weight = batch.place.weight / root_mean_square(dense)
                regression.add(shares, 1 - post_norm.eps / divisor.square(), weight=weight, **sample)
        self._add_up(regression, block.site + 1)
        return run.agreed(regression.solve_positive().to(fitted.device)).clamp_min(LEAST_GROWTH).sqrt()

    @timed("solve")
    def _delete_inputs(self, regression, candidates, count, fitted):
        # Costs ignore the metric: neurons chosen by the gradient would suit the calibration text alone.
        found = regression.delete_inputs(candidates, count, fitted.to(regression.device))
        return tuple(self.run.agreed(each.to(fitted.device)) for each in found)

    def _keep_neurons(self, block, kept, count):
        """Keeps the neurons `kept` of `count`. Where a layer fuses gate and up projection, each has a row in both."""
        for reader in self.run.sliced.mlp_readers(block.index):
            rows = torch.cat([kept + start for start in range(0, reader.weight.shape[-2], count)])
            rows = rows.to(reader.weight.device)
            bias = None if reader.bias is None else reader.bias[rows]
            reader.set(reader.weight[rows], bias, like=reader.weight)

    def _sample_tokens(self, batch, stride, *values) -> tuple[list[Tensor], dict]:
        """
        Returns values `(B, T, ...)` of every so many-th token, `(tokens, ...)`, and what a fit needs to know of these
        tokens. They are picked before they move.
        """
        sampled = batch.place.sampled(stride)
        tokens = [batch.tokens(value.to(value.device), sampled).to(self.run.device) for value in values]
        return tokens, {"held_out": batch.place.held_out(stride), "group": batch.place.group}


def _weights_of_writers(block: BlockPair, there: Basis) -> Tensor:
    """
    Returns the weights of a block's writers `(inputs, k')`, float64. A block adds to the stream a linear function of
    what its writers read, and of 1, whose weight is the bias, if there is one.
    """
    writers = block.sliced.writers().values()
    rows = [moved(writer.weight, there.dual.device, torch.float64) for writer in writers]
    factors = zip(writers, block.sliced.multipliers, strict=True)
    biases = [factor * writer.bias.to(there.dual) for writer, factor in factors if writer.bias is not None]
    return torch.cat([*rows, sum(biases)[None]] if biases else rows)


def _set_writers(block: BlockPair, parts: Sequence[Tensor]) -> None:
    """Sets the weights of a block's writers, and their biases to the part behind those, if there is one."""
    writers = block.sliced.writers().values()
    bias = None if len(parts) == len(writers) else parts[-1][0]
    for writer, factor, weight in zip(writers, block.sliced.multipliers, parts, strict=False):
        if writer.bias is None:
            writer.set(weight, like=writer.weight)
            continue
        # Biases of parallel writers add up, so the first of them can hold the sum.
        writer.set(weight, bias / factor, like=writer.weight)
        bias = torch.zeros_like(bias)


def _goal(batch, wanted, dense, sliced, shortcut) -> dict:
    """Returns what a block should write, `y` `(tokens, k')`, and the `weight` of each token `(tokens, 1)`."""
    y = wanted.float() - residual(sliced, shortcut)
    return {"y": y, "weight": batch.place.weight / root_mean_square(dense)}
