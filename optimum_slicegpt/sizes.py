"""How large a sliced model is, as a function of its widths, counted once from the shapes of the dense one."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import mul

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .modeling.families import family_of
from .modeling.weights import Reader, StreamWeight, Writer


PARTS = ("embeddings", "attention", "mlp", "shortcuts", "head", "norms")


def mlp_inner(config) -> int:
    """Neurons in each MLP of a dense model."""
    return getattr(config, family_of(config).inner_key) or 4 * config.hidden_size  # GPT-2 may leave it open


def on_meta(config) -> PreTrainedModel:
    """The dense causal language model of a configuration, without values."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))  # which it would note its choices in


@dataclass
class Size:
    """
    What grows with the widths and with the number of neurons: a count of parameters, or of multiplications.

    Args:
        inner (`int`): neurons in each MLP of the dense model.
        rows (`list[int]`): entries per dimension of the stream, for every site. The last holds what is off the stream.
        neurons (`list[int]`): the same, per dimension and neuron.
    """

    inner: int
    rows: list[int]
    neurons: list[int]

    @classmethod
    def nothing(cls, config) -> "Size":
        sites = family_of(config).num_sites(config)
        return cls(mlp_inner(config), [0] * (sites + 1), [0] * (sites + 1))

    def add(self, rows: int, site: int = -1, of_neurons: bool = False) -> None:
        """So many rows as wide as the stream at a site, or so many single entries; perhaps an equal share a neuron."""
        if of_neurons:
            self.neurons[site] += rows // self.inner  # two rows, where a layer fuses its gate with what it gates
        else:
            self.rows[site] += rows

    def __call__(self, widths: Sequence[float], inner: float | None = None, shortcuts: bool = True) -> float:
        """
        The size of a sliced model.

        Args:
            widths (`Sequence[int]`): one per site.
            inner (`int`, *optional*): neurons kept in each MLP. All by default.
            shortcuts (`bool`): whether a linear layer leads from each site to the next.
        """
        inner = self.inner if inner is None else inner
        terms = zip((*widths, 1), self.rows, self.neurons, strict=True)
        total = sum(width * (rows + inner * neurons) for width, rows, neurons in terms)
        return total + (sum(map(mul, widths, widths[1:])) if shortcuts else 0)


def parameter_size(model: PreTrainedModel, tied: bool) -> Size:
    """
    Counts parameters as `model.num_parameters()` does: a matrix that two layers share once.

    Args:
        model (`PreTrainedModel`): the dense causal language model; `meta` tensors will do.
        tied (`bool`): whether the head goes on sharing the embedding's matrix, with a projection on either side.
    """
    family, hidden_size = family_of(model.config), model.config.hidden_size
    body = model.base_model.get_submodule(family.body)
    size, last = Size.nothing(model.config), family.num_sites(model.config) - 1
    size.add(model.num_parameters())

    def norm(module, site):
        """Becomes an RMSNorm, which has a gain only."""
        size.add(-sum(parameter.numel() for parameter in module.parameters()))
        size.add(1, site)

    def reader(entry, site, module, of_neurons=False):
        """Takes in its norm's bias."""
        size.add(-entry.weight.numel())
        size.add(entry.weight.shape[:-1].numel(), site, of_neurons)
        outputs = entry.weight.shape[-2]
        if entry.bias is not None:
            size.add(-outputs)
        if entry.bias is not None or has_bias(module):
            size.add(outputs, of_neurons=of_neurons)

    def writer(entry, site, of_neurons=False):
        size.add(-entry.weight.numel())
        size.add(entry.weight.shape[:-1].numel(), site, of_neurons)
        if entry.bias is not None:
            size.add(-hidden_size)
            size.add(1, site)

    for site, layer, block in blocks(model):
        for name, _ in block.reads:
            norm(layer.get_submodule(name), site)
    for site, entry, module, of_neurons in block_weights(model):
        if isinstance(entry, Reader):
            reader(entry, site, module, of_neurons)
        else:
            writer(entry, site, of_neurons)
    final_norm = getattr(body, family.final_norm)
    norm(final_norm, last)
    if tied:
        size.add(hidden_size, 0)
        size.add(hidden_size, last)
        size.add(hidden_size * has_bias(final_norm))
        return size
    for name in family.embeddings:
        writer(Writer(body, name), 0)
    head = Reader(model, family.head)
    if model.config.tie_word_embeddings:  # then the count holds no matrix of the head's own yet
        size.add(head.weight.numel())
    reader(head, last, final_norm)
    return size


def product_size(model: PreTrainedModel, tied: bool) -> Size:
    """
    Counts multiplications of a token with matrices: of experts only those that it is sent to, and of attention none
    between tokens. Looking up an embedding takes none.

    Args: as [`parameter_size`].
    """
    config, family = model.config, family_of(model.config)
    size, last = Size.nothing(config), family.num_sites(config) - 1
    for site, entry, _, of_neurons in block_weights(model):
        *experts, rows, _ = entry.weight.shape
        size.add(rows * config.num_experts_per_tok if experts else rows, site, of_neurons)
    if tied:
        size.add(config.hidden_size, 0)
        size.add(config.hidden_size, last)
        size.add(config.hidden_size * config.vocab_size)
    else:
        size.add(config.vocab_size, last)
    return size


def parameters_by_part(model: PreTrainedModel) -> dict[str, int]:
    """
    Parameters of a model, dense or sliced, by what they belong to. A matrix that two parts share counts for the first.

    Args:
        model (`PreTrainedModel`): a causal language model; `meta` tensors will do.

    Returns:
        `dict[str, int]`: of each of [`PARTS`]; their sum is `model.num_parameters()`. What leads from tied embeddings
        to the stream counts as embeddings, what leads back as head, and whatever is of no other part as norms.
    """
    family = family_of(model.config)
    body = model.base_model.get_submodule(family.body)
    layers, final_norm = getattr(body, family.layers), getattr(body, family.final_norm)
    modules_of_parts = (
        [*(getattr(body, name) for name in family.embeddings), getattr(layers[0], "embedding_projection", None)],
        [getattr(layer, family.attn) for layer in layers],
        [getattr(layer, name) for layer in layers for name in family.mlp],
        [getattr(layer, block.shortcut, None) for layer in layers for block in family.blocks],
        [getattr(final_norm, "projection", None), getattr(model, family.head)],
        [model],
    )
    counts, seen = {}, set()
    for part, modules in zip(PARTS, modules_of_parts, strict=True):
        parameters = {id(each): each for module in filter(None, modules) for each in module.parameters()}
        counts[part] = sum(each.numel() for key, each in parameters.items() if key not in seen)
        seen.update(parameters)
    return counts


def blocks(model: PreTrainedModel) -> Iterator[tuple]:
    """Site, decoder layer and block, for every block in the order in which the stream meets them."""
    family = family_of(model.config)
    layers = getattr(model.base_model.get_submodule(family.body), family.layers)
    pairs = ((layer, block) for layer in layers for block in family.blocks)
    return ((site, *pair) for site, pair in enumerate(pairs))


def block_weights(model: PreTrainedModel) -> Iterator[tuple[int, StreamWeight, nn.Module | None, bool]]:
    """Site, weight, norm that it reads and whether it has a number of rows for each neuron, for all in the blocks."""
    family = family_of(model.config)
    alike = not family.moe and getattr(model.config, "intermediate_sizes", None) is None
    for site, layer, block in blocks(model):
        for norm, names in block.reads:
            for name in names:
                of_neurons = name in family.mlp_readers and alike
                yield site, Reader(layer, name), layer.get_submodule(norm), of_neurons
        for name in block.writers:
            yield site + 1, Writer(layer, name), None, name == family.mlp_writer and alike


def most_inputs(model: PreTrainedModel) -> int:
    """Inputs of the largest regression of a refit: those of a block's writers, which experts are not among."""
    return max(
        sum(Writer(layer, name).weight.shape[-2] for name in block.writers)
        for _, layer, block in blocks(model)
        if not block.keeps_width
    )


def has_bias(norm: nn.Module) -> bool:
    return getattr(norm, "bias", None) is not None


def flops_per_token(model: PreTrainedModel) -> int:
    """
    What a token takes in a model as it is, dense or sliced: products with matrices, head included, two operations a
    multiplication. Attention scores, whose number depends on the length of the context, are left out.

    Raises:
        ValueError: the model's family is not in the table.
    """
    config = model.config
    widths = getattr(config, "widths", None) or [config.hidden_size] * family_of(config).num_sites(config)
    products = product_size(model, tied=getattr(config, "embedding_size", None) is not None)
    return 2 * products(widths, shortcuts=getattr(config, "shortcuts", False))
