"""The forward of a sliced decoder layer, the same for every family."""

import inspect
from functools import partial

from torch import nn

from .family import CACHE_NAMES, Block, Family, has


class SlicedLayerMixin:
    """
    The forward of a decoder layer, the same for every family. It comes before the family's own layer class.

    A block reads the stream, mostly through a norm. Its output is added to the stream or, where the next site has
    another basis, to the product of the stream and the shortcut (SliceGPT, section 3.3).
    """

    _family: Family
    _blocks: tuple[Block, ...]
    embedding_projection: nn.Linear | None
    """Leads from the table of embeddings to the stream, in the first layer, where the table is wider."""
    _argument_names: tuple[str, ...]
    """Arguments of the family's forward after `hidden_states`: some models pass them to their layers by position."""

    def _finish(self, output, post_norm, dropout):
        """Applies the norm behind a block, the block's dropout, and the family's multiplier, to its output."""
        if post_norm is not None:
            output = getattr(self, post_norm)(output)
        dropout = getattr(self, dropout) if dropout else 0.0
        if isinstance(dropout, nn.Module):
            output = dropout(output)
        else:
            output = nn.functional.dropout(output, p=dropout, training=self.training)
        return self._times(output, self._family.residual_multiplier)

    def look_up(self, family: Family) -> None:
        """Looks up which of a family's modules the layer has, and the arguments of those that mix tokens."""
        self._family, self._blocks = family, tuple(block.of(self) for block in family.blocks)
        self._mlps = tuple(name for name in family.mlp if has(self, name))
        self._residual = {"residual": 0.0} if family.adds_residual else {}  # The layer itself adds the stream.
        self._factors_in = dict(family.input_multipliers)
        own = (each for each in family.output_multipliers if "." not in each[1])
        self._factors_out = {writer.partition(".")[0]: number for writer, number in own}
        self._mixers = {}
        for name in filter(partial(has, self), family.attn):
            arguments = inspect.signature(getattr(self, name).forward).parameters
            takes_all = any(each.kind is each.VAR_KEYWORD for each in arguments.values())
            self._mixers[name] = frozenset(arguments), takes_all

    def _times(self, value, number):
        """Multiplies a tensor by a number on the layer, of which `None` is the name where there is none."""
        return value if number is None else value * getattr(self, number)

    def _attn(self, normed, kwargs):
        """Returns what attention, and what else mixes tokens, puts out together, and attention's weights or `None`."""
        (output, weights), *others = (self._mix(name, normed, kwargs) for name in self._mixers)
        for more, its_weights in others:
            output, weights = output + more, weights if its_weights is None else its_weights
        return self._finish(output, self._family.attn_post_norm, self._family.attn_dropout), weights

    def _mix(self, name, normed, kwargs):
        """Returns the output of one module that mixes tokens, and its weights or `None`."""
        arguments, takes_all = self._mixers[name]
        cache = next((kwargs[key] for key in CACHE_NAMES if kwargs.get(key) is not None), None)
        kwargs = kwargs | {key: cache for key in CACHE_NAMES if key in arguments} | self._residual
        mask = f"{name}_attention_mask"
        if mask in kwargs:
            kwargs["attention_mask"] = kwargs.pop(mask)
        if not takes_all:
            kwargs = {key: value for key, value in kwargs.items() if key in arguments}
        output, weights = getattr(self, name)(self._times(normed, self._factors_in.get(name)), **kwargs), None
        if isinstance(output, tuple):
            output, weights, *_ = output
        return self._times(output, self._factors_out.get(name)), weights

    def _mlp(self, normed):
        """Returns the output of the MLP."""
        given, outputs = normed, []
        for name in self._mlps:
            output = getattr(self, name)(given, **self._residual)
            output = output[0] if isinstance(output, tuple) else output  # A router's choice may be behind it.
            outputs.append(output.reshape(*normed.shape[:-1], output.shape[-1]))  # There may be no tokens.
            given = normed if self._family.mlp_adds else outputs.pop()
        output = sum(outputs) if outputs else given
        return self._finish(output, self._family.mlp_post_norm, self._family.mlp_dropout)

    def _normed(self, stream, norm):
        """Returns what a block reads: the stream behind a norm, or the stream itself."""
        return stream if norm is None else getattr(self, norm)(stream)

    def mlp_output(self, stream):
        """Computes what the MLP adds to the stream `(..., width)`, in a block of its own or beside attention."""
        return self._mlp(self._normed(stream, self._family.mlp_norm or self._family.attn_norm))

    def block_output(self, kind, stream, kwargs):
        """
        Computes what one block adds to the stream.

        Args:
            kind (`str`): `"attn"`, `"mlp"` or `"parallel"`, see [`family.Block`].
            stream (`torch.Tensor` of shape `(batch, tokens, width)`): the stream at the block's site.
            kwargs (`dict`): arguments of attention that come from the model: mask, positions, cache.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, width of the writers)`.
        """
        return self._block(kind, stream, kwargs)[0]

    def _block(self, kind, stream, kwargs):
        """Returns what a block adds to the stream, and the weights of its attention or `None`."""
        family = self._family
        if kind == "mlp":
            return self.mlp_output(stream), None
        normed = self._normed(stream, family.attn_norm)
        output, weights = self._attn(normed, kwargs)
        if kind == "attn":
            return output, weights
        if family.mlp_norm is not None:
            normed = self._normed(stream, family.mlp_norm)
        return output + self._mlp(normed), weights

    def forward(self, hidden_states, *args, **kwargs):
        kwargs.update(zip(self._argument_names, args, strict=False))
        if self.embedding_projection is not None:
            hidden_states = self.embedding_projection(hidden_states)
        weights = None
        for block in self._blocks:
            output, block_weights = self._block(block.kind, hidden_states, kwargs)
            weights = block_weights if weights is None else weights
            shortcut = getattr(self, block.shortcut)
            hidden_states = (hidden_states if shortcut is None else shortcut(hidden_states)) + output
        return (hidden_states, weights) if self._family.returns_tuple else hidden_states
