"""A decoder seen by its family: its layers, blocks and sites, and the weights that read and write the stream."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .contexts import inputs_seen
from .families import deep_writers, family_of, num_neurons
from .family import Block, Family, has
from .weights import Reader, Writer, body_of, whole_of


def empty_model(config) -> PreTrainedModel:
    """Builds the dense causal language model of a configuration on `meta`, without values."""
    with torch.device("meta"):
        # from_config writes the attention implementation into the configuration that it is given.
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


@dataclass(frozen=True)
class DecoderBlock:
    """
    One block of one layer: it reads the stream at a site, and adds to it before the next site.

    Args:
        site (`int`): the site where the block reads. It writes before `site + 1`.
        index (`int`): position of the layer.
        layer (`nn.Module`): the decoder layer.
        names ([`family.Block`]): the block's names, which are relative to the layer.
        family ([`family.Family`]): of the model.
    """

    site: int
    index: int
    layer: nn.Module
    names: Block
    family: Family

    @property
    def kind(self) -> str:
        """`"attn"`, `"mlp"` or `"parallel"`."""
        return self.names.kind

    @property
    def keeps_width(self) -> bool:
        """Whether the block puts out as many dimensions as it reads: among its writers are experts, in a stack."""
        return any(writer.weight.ndim > 2 for writer in self.writers().values())

    @property
    def has_dense_mlp(self) -> bool:
        """Whether the block has the layer's MLP, and no experts."""
        return self.family.mlp_writer in self.names.writers and not self.keeps_width

    @property
    def multipliers(self) -> list[float]:
        """The numbers by which the outputs of the block's writers are multiplied, one for each."""
        common, own = self.family.residual_multiplier, dict(self.family.output_multipliers)
        named = [filter(None, (common, own.get(writer))) for writer in self.names.writers]
        return [prod(attrgetter(name)(self.layer) for name in names) for names in named]

    @property
    def entrances(self) -> list[nn.Module]:
        """The modules that read the output of the block's norms."""
        family, found = self.family, []
        if self.kind != "mlp":
            found += family.attn
        if self.kind != "attn":
            found += family.mlp if family.mlp_adds else family.mlp[:1]
        return [getattr(self.layer, name) for name in found if has(self.layer, name)]

    @property
    def post_norm(self) -> nn.Module | None:
        """The norm of the writers' output, if the family has one."""
        name = self.names.post_norm
        return None if name is None else self.layer.get_submodule(name)

    @property
    def post_gain(self) -> Tensor | None:
        """What the norm of the writers' output multiplies by `(width,)`, float64, if the family has such a norm."""
        return None if self.post_norm is None else self.post_norm.weight.double() + self.family.gain_offset

    def norms(self) -> Iterator[tuple[str | None, nn.Module | None, dict[str, Reader]]]:
        """
        Yields each norm's name and module, with the weights that read its output, by name. Name and module are `None`
        where they read the stream itself.
        """
        for norm, readers in self.names.reads:
            module = None if norm is None else self.layer.get_submodule(norm)
            yield norm, module, {name: Reader(self.layer, name) for name in readers}

    def readers(self) -> dict[str, Reader]:
        """Returns the weights that read the stream, by name."""
        return {name: reader for _, _, readers in self.norms() for name, reader in readers.items()}

    def writers(self) -> dict[str, Writer]:
        """Returns the weights that write to the stream, by name."""
        return {name: Writer(self.layer, name) for name in self.names.writers}


class Decoder:
    """
    A causal language model, dense or sliced, seen by its row in the table of families.

    Args:
        model (`PreTrainedModel`): a causal language model, whose tensors may be on `meta`.

    Attributes:
        family ([`family.Family`]): the model's row.
        body (`nn.Module`): the module that holds tables, layers and the final norm.
        layers (`nn.ModuleList`): the decoder layers.

    Raises:
        ValueError: no row describes the model's family or this variant of it.

    Examples:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=2, vocab_size=97)
        >>> decoder = Decoder(empty_model(config))
        >>> decoder.num_sites, decoder.layer_name(1), decoder.head_name
        (5, 'model.layers.1', 'lm_head')
        >>> [(block.site, block.kind, list(block.writers())) for block in decoder.blocks()][1]
        (1, 'mlp', ['mlp.down_proj'])
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.config, self.family = model, model.config, family_of(model.config)
        self.body = body_of(model, self.family)
        self.layers = getattr(self.body, self.family.layers)
        base = model.base_model_prefix if model.base_model is not model else ""
        self._prefix = ".".join(filter(None, (base, self.family.body)))

    # Sites and blocks

    @property
    def num_sites(self) -> int:
        """Number of norms that read the stream."""
        return self.family.num_sites(self.config)

    @property
    def num_neurons(self) -> int:
        """Number of neurons in each MLP of a dense model."""
        return num_neurons(self.config)

    def site_name(self, site: int) -> str:
        """Returns the number of a site, and where it is, in words."""
        return f"site {site} ({self.family.site_name(site, self.config)})"

    def blocks(self) -> Iterator[DecoderBlock]:
        """Yields all blocks in the order in which the stream meets them: block `s` reads at site `s`."""
        for index in range(len(self.layers)):
            yield from self.blocks_of(index)

    def blocks_of(self, index: int) -> list[DecoderBlock]:
        """Returns the blocks of one layer."""
        first = index * len(self.family.blocks)
        return [
            DecoderBlock(site, index, self.layers[index], names.of(self.layers[index]), self.family)
            for site, names in enumerate(self.family.blocks, first)
        ]

    # What turns inputs into the stream

    @property
    def front(self) -> nn.Module:
        """The module that turns inputs into the stream: the body, or the model of images and text around it."""
        whole = whole_of(self.model)
        return self.body if whole is None else whole.base_model

    def front_modules(self) -> nn.ModuleList:
        """Returns all modules but the layers that turn inputs into the stream, tables and the final norm included."""
        around, front = self.modules(*self.around_layers), self.front
        if front is not self.body:
            around.extend(child for child in front.children() if self.body not in child.modules())
            around.append(nn.ParameterList(front.parameters(recurse=False)))
        return around

    def deep_writers(self, site: int) -> dict[str, Writer]:
        """Returns the weights of the model of images and text around this one that write before a site, by name."""
        whole = whole_of(self.model)
        names = {} if whole is None else deep_writers(whole.config, whole.base_model)
        return {names[site]: Writer(whole.base_model, names[site])} if site in names else {}

    # Names, as `model.get_submodule` takes them

    def layer_name(self, index: int) -> str:
        """Returns the name of a decoder layer."""
        return f"{self._prefix}.{self.family.layers}.{index}"

    @property
    def table_names(self) -> list[str]:
        """Names of the tables whose sum starts the stream: tokens first, then learned positions."""
        return [f"{self._prefix}.{name}" for name in self.family.embeddings]

    @property
    def final_norm_name(self) -> str:
        return f"{self._prefix}.{self.family.final_norm}"

    @property
    def head_name(self) -> str:
        return self.family.head

    @property
    def around_layers(self) -> list[str]:
        """Names of all modules of the body except its layers: tables, the final norm, rotary positions."""
        names = [name for name, _ in self.body.named_children() if name != self.family.layers]
        return [f"{self._prefix}.{name}" for name in names]

    def names_on_stream(self) -> tuple[list[tuple[str | None, tuple[str, ...]]], list[str]]:
        """
        Returns the names of all norms in front of readers, of all readers and writers, head and tables included.

        Returns:
            `tuple`: pairs of a norm, `None` for none, and its readers, first the final norm and the head; the writers,
            first the tables.
        """
        reads, writers = [(self.final_norm_name, (self.head_name,))], self.table_names
        for block in self.blocks():
            layer = self.layer_name(block.index)
            for norm, readers in block.names.reads:
                path = f"{layer}.{{}}".format
                reads.append((norm and path(norm), tuple(type(name)(path(name)) for name in readers)))
            writers += [type(name)(f"{layer}.{name}") for name in block.names.writers]
        return reads, writers

    @property
    def post_norm_names(self) -> list[str]:
        """Names of the norms behind the blocks."""
        named = (block for block in self.blocks() if block.names.post_norm)
        return [f"{self.layer_name(block.index)}.{block.names.post_norm}" for block in named]

    # Modules and weights

    def modules(self, *names: str) -> nn.ModuleList:
        """Returns some modules of the model by their names."""
        return nn.ModuleList(map(self.model.get_submodule, names))

    @property
    def final_norm(self) -> nn.Module:
        return self.body.get_submodule(self.family.final_norm)

    @property
    def head(self) -> Reader:
        return Reader(self.model, self.family.head)

    @property
    def tables(self) -> list[Writer]:
        """The tables whose sum starts the stream: tokens first, then learned positions."""
        return [Writer(self.body, name) for name in self.family.embeddings]

    def mlp_writer(self, index: int) -> Writer:
        """Returns the weight `(neurons, width)` with which a layer's MLP writes to the stream."""
        return Writer(self.layers[index], self.family.mlp_writer)

    def mlp_readers(self, index: int) -> list[Reader]:
        """Returns the weights with which a layer's MLP reads the stream: one or two rows for each neuron."""
        layer = self.layers[index]
        return [Reader(layer, name) for name in self.family.mlp_readers if has(layer, name)]

    # The stream inside a dense layer

    def layer_streams(self, index: int, stream: Tensor, kwargs: dict) -> list[Tensor]:
        """
        Computes the stream after each block of a layer, as the layer's own code has it: see [`Decoder.site_streams`].

        Args:
            index (`int`): of the layer.
            stream (`torch.Tensor` of shape `(B, T, D)`): the stream before the layer.
            kwargs (`dict`): the layer's other arguments.

        Returns:
            `list[torch.Tensor]`: one for every block.
        """
        layer, between = self.layers[index], []
        if (
            len(self.family.blocks) > 1
        ):  # In sequential layers the second norm, or the MLP, reads the stream in between.
            between = [layer.get_submodule(self.family.mlp_norm or self.family.mlp[0])]
        with inputs_seen(between) as seen:
            output = layer(stream, **kwargs)
        return [*seen.values(), output[0] if isinstance(output, tuple) else output]

    def site_streams(self, streams: list[Tensor], like: Tensor) -> list[Tensor]:
        """
        Returns streams, or gradients with respect to them, as sites have them: centred if the family's norms do that.

        Args:
            streams (`list[torch.Tensor]`): of [`Decoder.layer_streams`]. OPT's are flat where its second norm reads.
            like (`torch.Tensor` of shape `(B, T, D)`): has the shape of the result.
        """
        streams = [stream.view_as(like) for stream in streams]
        return [each - each.mean(-1, keepdim=True) for each in streams] if self.family.layer_norm else streams
