"""Sizes of models: of a sliced model as a function of its widths, counted once from the shapes of the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..modeling.family import has
from ..modeling.weights import Reader, StreamWeight, Writer, has_bias


if TYPE_CHECKING:
    from ..modeling.decoder import Decoder


PARTS = ("embeddings", "attention", "mlp", "shortcuts", "head", "norms")
"""Parts of a model among which [`parameters_by_part`] divides the parameters."""


@dataclass
class Size:
    """
    A count of parameters or of multiplications, as a function of the widths and of the number of neurons.

    Args:
        neurons (`int`): neurons in each MLP of the dense model.
        rows (`list[int]`):
            For every site, entries per dimension of the stream. A last element counts entries off the stream.
        rows_per_neuron (`list[int]`): the same, entries per dimension and neuron.
        hidden_size (`int`): D of the dense model.
        narrower_rows (`int`): entries per dimension of a stream that is narrower than the dense one.
    """

    neurons: int
    rows: list[int]
    rows_per_neuron: list[int]
    hidden_size: int
    narrower_rows: int = 0

    @classmethod
    def zero(cls, dense: Decoder) -> Size:
        """Returns a count of nothing, for a dense model."""
        sites = dense.num_sites + 1
        return cls(dense.num_neurons, [0] * sites, [0] * sites, dense.config.hidden_size)

    def add(self, rows: int, site: int = -1, of_neurons: bool = False) -> None:
        """
        Adds rows of a matrix.

        Args:
            rows (`int`): number of rows; negative to subtract.
            site (`int`, *optional*): the site whose width the rows have. By default they are single entries.
            of_neurons (`bool`, defaults to `False`): whether the number of rows is proportional to that of neurons.
        """
        if of_neurons:
            # A neuron has two rows where a layer fuses gate and up projection.
            self.rows_per_neuron[site] += rows // self.neurons
        else:
            self.rows[site] += rows

    def __call__(self, widths: Sequence[float], neurons: float | None = None, shortcuts: bool = True) -> float:
        """
        Computes the size of a sliced model.

        Args:
            widths (`Sequence[int]`): one per site.
            neurons (`int`, *optional*): neurons that each MLP keeps. All by default.
            shortcuts (`bool`): whether a linear layer leads from each site to the next.
        """
        neurons = self.neurons if neurons is None else neurons
        terms = zip((*widths, 1), self.rows, self.rows_per_neuron, strict=True)
        total = sum(width * (rows + neurons * per_neuron) for width, rows, per_neuron in terms)
        total += self.narrower_rows * widths[0] * (widths[0] < self.hidden_size)
        return total + (sum(map(mul, widths, widths[1:])) if shortcuts else 0)


def parameter_size(dense: Decoder, embeddings: str, stock: bool = False) -> Size:
    """
    Counts parameters as `model.num_parameters()` does: a matrix that two layers share counts once.

    Args:
        dense ([`Decoder`]): the dense model, whose tensors may be on `meta`.
        embeddings (`str`): `"narrow"`, `"tied"` or `"sliced"`, see [`SliceGPTConfig`].
        stock (`bool`): whether the result is of a stock class, whose norms and biases are those of the dense model.

    Returns:
        [`Size`]: in parameters.
    """
    hidden_size = dense.config.hidden_size
    size, last = Size.zero(dense), dense.num_sites - 1
    size.add(dense.model.num_parameters())

    def replace_norm(norm: nn.Module, site: int):
        # A norm of a sliced class is an RMSNorm, which has a gain and no bias.
        parameters = [parameter.numel() for parameter in norm.parameters()]
        size.add(-sum(parameters))
        size.add(len(parameters) if stock else 1, site)

    def replace_weight(weight: StreamWeight, site: int, of_neurons: bool = False):
        size.add(-weight.weight.numel())
        size.add(weight.weight.shape[:-1].numel(), site, of_neurons)

    def replace_reader(reader: Reader, site: int, norm: nn.Module | None, of_neurons: bool = False):
        replace_weight(reader, site, of_neurons)
        outputs = reader.weight.shape[-2]
        if reader.bias is not None:
            size.add(-outputs)
        # The bias of a norm moves into its readers, or into their weights where a stock class has no bias.
        if reader.bias is not None or (has_bias(norm) and not stock):
            size.add(outputs, of_neurons=of_neurons)

    def replace_writer(writer: StreamWeight, site: int, of_neurons: bool = False):
        replace_weight(writer, site, of_neurons)
        if writer.bias is not None:
            size.add(-hidden_size)
            size.add(1, site)

    for block in dense.blocks():
        for _, norm, _ in block.norms():
            if norm is not None:
                replace_norm(norm, block.site)
        if block.post_norm is not None:
            replace_norm(block.post_norm, block.site + 1)
        if stock and any(dict(found.changes).get("attention_bias") for found in dense.family.narrower):
            size.narrower_rows += block.kind == "attn"  # Llama has a bias where Qwen2's attention writes, too.
    for site, weight, norm, of_neurons in _block_weights(dense):
        if isinstance(weight, Writer):
            replace_writer(weight, site, of_neurons)
        else:
            replace_reader(weight, site, norm, of_neurons)
    replace_norm(dense.final_norm, last)
    if embeddings == "tied":
        size.add(hidden_size, 0)
        size.add(hidden_size, last)
        size.add(hidden_size * has_bias(dense.final_norm))
        return size
    for table in dense.tables:
        replace_writer(table, 0)
    if embeddings == "narrow":
        return size
    if dense.config.tie_word_embeddings:  # `num_parameters` has counted the shared matrix once, for the table.
        size.add(dense.head.weight.numel())
    replace_reader(dense.head, last, dense.final_norm)
    return size


def product_size(decoder: Decoder, embeddings: str) -> Size:
    """
    Counts the multiplications that a token takes in products with matrices. Of experts, those count that the token is
    sent to. Attention scores, convolutions, recurrences and the embedding's look-up do not count.

    Args:
        decoder ([`Decoder`]): a model, dense or sliced, whose tensors may be on `meta`.
        embeddings (`str`): `"tied"` for a head that keeps all dimensions behind a projection.

    Returns:
        [`Size`]: in multiplications.
    """
    config = decoder.config
    size, last = Size.zero(decoder), decoder.num_sites - 1
    for site, weight, _, of_neurons in _block_weights(decoder):
        if weight.key.endswith("bias"):  # Those of experts are stacks, and writers of their own.
            continue
        *experts, rows, _ = weight.weight.shape
        size.add(rows * getattr(config, decoder.family.active_key) if experts else rows, site, of_neurons)
    size.add(sum(matrix.numel() for matrix in _inner_matrices(decoder)))
    if embeddings == "tied":
        size.add(config.hidden_size, 0)
        size.add(config.hidden_size, last)
        size.add(config.hidden_size * config.vocab_size)
    else:
        size.add(config.vocab_size, last)
    return size


def _block_weights(decoder: Decoder) -> Iterator[tuple[int, StreamWeight, nn.Module | None, bool]]:
    """
    Yields every weight of the blocks: its site, the weight, the norm before a reader, if there is one, and whether its
    rows are proportional to the number of neurons.
    """
    family = decoder.family
    scales = not family.keeps_neurons and getattr(decoder.config, "intermediate_sizes", None) is None
    for block in decoder.blocks():
        for _, norm, readers in block.norms():
            for name, reader in readers.items():
                yield block.site, reader, norm, scales and name in family.mlp_readers
        for name, writer in block.writers().items():
            yield block.site + 1, writer, None, scales and name == family.mlp_writer


def _inner_matrices(decoder: Decoder) -> Iterator[Tensor]:
    """Yields the matrices between readers and writers, which slicing leaves as they are: those of low-rank queries."""
    family = decoder.family
    on_stream = {weight.module for _, weight, _, _ in _block_weights(decoder)}
    for layer in decoder.layers:
        for name in filter(partial(has, layer), (*family.attn, *family.mlp)):
            for module in getattr(layer, name).modules():
                if isinstance(module, nn.Linear) and module not in on_stream:
                    yield module.weight


def parameters_by_part(decoder: Decoder) -> dict[str, int]:
    """
    Counts the parameters of each part of a model, dense or sliced. A matrix that two parts share counts for the first.

    Args:
        decoder ([`Decoder`]): the model, whose tensors may be on `meta`.

    Returns:
        `dict[str, int]`: for each of [`PARTS`]; the sum is `model.num_parameters()`. The projection from a tied table
        to the stream counts as embeddings, the projection back as head, and parameters of no other part as norms.
    """
    family, layers = decoder.family, decoder.layers
    modules_of_parts = (
        [*(table.module for table in decoder.tables), getattr(layers[0], "embedding_projection", None)],
        [getattr(layer, name, None) for layer in layers for name in family.attn],
        [getattr(layer, name, None) for layer in layers for name in family.mlp],
        [getattr(block.layer, block.names.shortcut, None) for block in decoder.blocks()],
        [getattr(decoder.final_norm, "projection", None), decoder.head.module],
        [decoder.model],
    )
    counts, seen = {}, set()
    for part, modules in zip(PARTS, modules_of_parts, strict=True):
        parameters = {id(each): each for module in filter(None, modules) for each in module.parameters()}
        counts[part] = sum(each.numel() for key, each in parameters.items() if key not in seen)
        seen.update(parameters)
    return counts


def most_inputs(dense: Decoder) -> int:
    """Returns the number of inputs of a refit's largest regression, of a block's writers. Experts are not fitted."""
    return max(
        sum(writer.weight.shape[-2] for writer in block.writers().values())
        for block in dense.blocks()
        if not block.keeps_width
    )


def flops_per_token(decoder: Decoder) -> int:
    """
    Counts the operations that a token takes in a model, dense or sliced: two for each multiplication in products with
    matrices, head included. Attention scores do not count, because their number depends on the length of the context.

    Args:
        decoder ([`Decoder`]): the model, whose tensors may be on `meta`.
    """
    config = decoder.config
    widths = getattr(config, "widths", None) or [config.hidden_size] * decoder.num_sites
    products = product_size(decoder, "sliced" if getattr(config, "embedding_size", None) is None else "tied")
    return 2 * products(widths, shortcuts=getattr(config, "shortcuts", False))
