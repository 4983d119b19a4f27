"""
Weights of the sliced model, made of the dense ones: norms fused, a basis applied (SliceGPT, sections 3.2 and 3.3).

Fusion and basis are one linear map on either side of a weight. All products are in float64, with one cast at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..linalg.composition import compose, moved
from ..modeling.weights import Reader, Writer, deep_values, has_bias
from .post_norms import PostNorm, set_post_gain


if TYPE_CHECKING:
    from .pairs import BlockPair, NormPair
    from .parts import Fit
    from .run import Run
    from .state import Basis
    from .streams import DenseStream, SlicedStream


def write_embeddings(run: Run, basis: Basis) -> None:
    """Writes what starts the stream: tables, or the projection behind one that keeps its width (equation 3)."""
    dense, sliced, projected = run.dense, run.sliced, run.plan.embeddings == "tied"
    around = [*dense.around_layers, *([dense.head_name] if projected else [])]
    with run.loaded(*around), run.phase("compose"):
        run.adopt(*around)
        if projected:
            set_linear(run, sliced.layers[0].embedding_projection, writer_map(run, basis).T)
            return
        # A matrix that the head shares is not centred: the head needs the mean, which LayerNorms subtract later.
        matrix = basis.write if run.plan.embeddings == "narrow" else writer_map(run, basis)
        for source, target in zip(dense.tables, sliced.tables, strict=True):
            set_writer(target, source, matrix, like=run.at_rest)
        if run.plan.embeddings == "narrow":
            sliced.model.tie_weights()


def write_readers(run: Run, norm: NormPair, matrix: Tensor) -> None:
    """
    Writes a norm, and the weights that read it: `(out, D)` become `(out, k)` (equation 4).

    Args:
        run ([`run.Run`]): says dtype and device of weights at rest.
        norm ([`NormPair`]): becomes an RMSNorm of unit gain.
        matrix (`torch.Tensor` of shape `(D, k)`, float64): Q / c, or what was fitted instead.
    """
    if norm.dense is not None:
        set_norm(run, norm, matrix.shape[1])
    set_readers(run, norm, matrix)


def write_writers(run: Run, block: BlockPair, there: Basis, x: DenseStream) -> None:
    """
    Writes a block's writers, `(D, in)` -> `(k, in)`: `writeᵀ W`, and `writeᵀ b` (equations 5 and 6), and the norm
    behind them, if there is one.
    """
    with run.phase("compose"):
        matrix, post_norm = writer_map(run, there), PostNorm.behind(block, there, x)
        if post_norm is not None:
            matrix = post_norm.write
            set_post_gain(run, block, post_norm.gain)
        for source, target in block.writers():
            set_writer(target, source, matrix, like=run.at_rest)


def write_deep_writers(run: Run, site: int, there: Basis) -> None:
    """Writes the weights around a text tower that add features of images to its stream at a site, if there are any."""
    with run.phase("compose"):
        for name, source in run.dense.deep_writers(site).items():
            deep_values(run.sliced.model)[name] = written(source, writer_map(run, there), run.at_rest.dtype)


def write_shortcut(run: Run, block: BlockPair, here: Basis, there: Basis) -> Tensor | None:
    """
    Writes the linear layer on a block's residual connection (figure 4).

    Returns:
        `torch.Tensor` of shape `(k, k')`, float64; `None` where all sites share one basis.
    """
    if not run.plan.shortcuts:
        return None
    with run.phase("compose"):
        shortcut = here.shortcut(there)
        set_linear(run, block.sliced.layer.get_submodule(block.sliced.names.shortcut), shortcut.T)
    return shortcut


def write_head(run: Run, norm: NormPair, basis: Basis, fit: Fit, x: DenseStream, z: SlicedStream) -> None:
    """Writes the final norm, and the head or what leads to one that keeps its width (equation 7)."""
    dense, embeddings = run.dense, run.plan.embeddings
    with run.loaded(dense.final_norm_name, *([] if embeddings == "tied" else [dense.head_name])):
        if embeddings == "narrow":
            write_final_gain(run, norm, basis, fit, x, z)
            return
        matrix = fit.readers(norm, basis, x, z) * head_factor(run)
        if embeddings == "sliced":
            write_readers(run, norm, matrix)
            return
        set_norm(run, norm, matrix.shape[1])
        with run.phase("compose"):
            matrix = reader_map(norm.dense, dense.family.gain_offset, matrix)
            set_linear(run, norm.sliced.projection, matrix, getattr(norm.dense, "bias", None))


def write_final_gain(run: Run, norm: NormPair, basis: Basis, fit: Fit, x: DenseStream, z: SlicedStream) -> None:
    """
    Writes the gains of the final norm before a head that shares the embedding's narrow matrix E Q c.

    The dense logits are E G norm(x), G the diagonal of the dense gains; the sliced ones, with z = norm_k(Qᵀx), are
    E Q c Γ z. With E ≈ E Q Qᵀ they are the same for Γ = QᵀGQ / c², which is diagonal along the shared axes unless they
    lie near to dimensions.
    """
    gain = (basis.axes * reader_map(norm.dense, run.dense.family.gain_offset, basis.axes)).sum(0) / basis.scale**2
    gain = fit.final_gain(norm, basis, gain, x, z) * head_factor(run)
    norm.sliced.weight = nn.Parameter(gain.to(run.at_rest))
    if has_bias(norm.dense):  # The stream keeps its width then, and the stock norm its bias.
        norm.sliced.bias = nn.Parameter(norm.dense.bias.to(run.at_rest, copy=True))
    if run.dense.head.bias is not None:
        run.sliced.head.module.bias = nn.Parameter(run.dense.head.bias.to(run.at_rest, copy=True))


def head_factor(run: Run) -> float:
    """Returns a factor of the head's input: it undoes that a narrower model divides it by less than the dense one."""
    return run.sliced.config.hidden_size / run.dense.config.hidden_size if run.dense.family.head_divides else 1.0


def set_norm(run: Run, norm: NormPair, width: int) -> None:
    """Sets the gain of an RMSNorm of the sliced model to 1: its readers hold the gain of the dense norm."""
    norm.sliced.weight = nn.Parameter(run.at_rest.new_ones(width))


def set_readers(run: Run, norm: NormPair, matrix: Tensor) -> None:
    """Sets the weights that read a norm to `W diag(gain) matrix`, their biases to `b + W beta`."""
    with run.phase("compose"):
        matrix = reader_map(norm.dense, run.dense.family.gain_offset, matrix)
        for source, target in norm.readers:
            weight = compose(source.weight, matrix, run.at_rest.dtype)
            target.set(weight, reader_bias(source, norm.dense), like=run.at_rest)


def set_writer(target: Writer, source: Writer, matrix: Tensor, like: Tensor) -> None:
    """Sets a writer to the product of the dense one `(..., in, D)` and a matrix `(D, k)`, stored as `like` is."""
    target.set(*written(source, matrix, like.dtype), like=like)


def written(source: Writer, matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Returns the products of a dense writer's weight, in a dtype, and of its bias, and a matrix `(D, k)`."""
    bias = None if source.bias is None else source.bias.to(matrix) @ matrix
    return compose(source.weight, matrix, dtype), bias


def set_linear(run: Run, target: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Sets the weight `(out, in)` and the bias of a linear layer that slicing adds, a shortcut or a projection."""
    target.weight = nn.Parameter(moved(weight, run.at_rest.device, run.at_rest.dtype).contiguous())
    if bias is not None:
        target.bias = nn.Parameter(bias.to(run.at_rest, copy=True))


def reader_map(norm: nn.Module | None, gain_offset: float, matrix: Tensor) -> Tensor:
    """
    Returns the matrix that right-multiplies a reader's weight: `diag(gain) @ matrix`.

    Args:
        norm (`torch.nn.Module`, *optional*): that the reader reads, if any. Its gain is its weight, if it has one.
        gain_offset (`float`): what the norm adds to its weight, see [`families.Family`].
        matrix (`torch.Tensor` of shape `(D, k)`, float64): from the sliced norm's output to the dense one's.

    Returns:
        `torch.Tensor` of shape `(D, k)`, float64.
    """
    gain = getattr(norm, "weight", None)
    return matrix if gain is None else (gain.to(matrix) + gain_offset)[:, None] * matrix


def reader_bias(reader: Reader, norm: nn.Module | None) -> Tensor | None:
    """
    Returns a reader's bias once it has taken in the norm's: `b + W @ beta`.

    Returns:
        `torch.Tensor` of shape `(out,)`, float64, or `None` where neither has a bias.
    """
    beta = getattr(norm, "bias", None)
    bias = None if reader.bias is None else reader.bias.double()
    if beta is None:
        return bias
    added = compose(reader.weight, beta.to(reader.weight.device).double()[:, None], torch.float64).squeeze(-1)
    return added if bias is None else bias + added


def writer_map(run: Run, basis: Basis) -> Tensor:
    """
    Returns the matrix `(D, k)` that right-multiplies what is written to a site: the basis's `write`.

    It subtracts the mean for LayerNorm networks only, whose norms would do it. Centring an RMSNorm network would make
    another network of it.
    """
    return (basis.centred() if run.dense.family.layer_norm else basis).write
