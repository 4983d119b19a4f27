"""Width of the stream at every site, and what it costs, solved before any weight changes."""

from dataclasses import dataclass

from transformers.utils import logging

from .configuration import SliceGPTConfig
from .modeling.families import check_equal_widths, family_of
from .modeling.weights import Reader, Writer


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SlicePlan:
    """
    What a run will keep.

    Args:
        hidden_size (`int`): D of the dense model.
        widths (`tuple[int, ...]`): width at every site, from the first norm to the final one.
        tied (`bool`): whether the head goes on sharing the embedding's matrix, with a projection on either side.
    """

    hidden_size: int
    widths: tuple[int, ...]
    tied: bool = False

    @classmethod
    def from_config(cls, config: SliceGPTConfig, model_config) -> "SlicePlan":
        """
        Solves the widths for a model.

        Where a family needs sites to be equally wide, `sparsity` gives all of them the width of the widest.

        Args:
            config ([`SliceGPTConfig`]): gives `widths`, or `sparsity`, `round_to` and `slice_head`.
            model_config (`PreTrainedConfig`): of the dense model.

        Raises:
            ValueError: the family cannot be sliced, `widths` do not fit the model, nothing would be left, or
                `embeddings="tied"` and they are not.
        """
        hidden_size = model_config.hidden_size
        family = family_of(model_config)
        sites = family.num_sites(model_config)
        if config.widths is not None:
            if len(config.widths) != sites:
                raise ValueError(f"widths has {len(config.widths)} entries; this model has {sites} sites.")
            if max(config.widths) > hidden_size:
                raise ValueError(f"widths holds {max(config.widths)}, more than the hidden size, {hidden_size}.")
            tied = keeps_tie(config.embeddings, model_config, config.widths)
            check_equal_widths(model_config, config.widths, tied)
            return cls(hidden_size, tuple(config.widths), tied)
        width = int((1 - config.sparsity) * hidden_size)
        if config.sparsity > 0:
            width -= width % config.round_to
        if width < 1:
            raise ValueError(
                f"sparsity={config.sparsity} leaves no dimension of {hidden_size} when rounded down to a multiple of "
                f"round_to={config.round_to}; lower either."
            )
        widths = [width] * (sites - 1) + [width if config.slice_head else hidden_size]
        tied = keeps_tie(config.embeddings, model_config, widths)
        for first, second, reason in family.equal_sites(model_config, tied):
            if widths[first] != widths[second]:
                widths[first] = widths[second] = max(widths[first], widths[second])
                logger.warning(
                    f"Site {first} is not sliced: it must be as wide as site {second}, which the head reads, because "
                    f"{reason}. slice_head=True slices both."
                )
        return cls(hidden_size, tuple(widths), tied)

    def num_parameters(self, model) -> int:
        """
        Parameters of the sliced model, counted from the shapes of the dense one.

        Args:
            model (`PreTrainedModel`): the dense causal language model; `meta` tensors will do.

        Returns:
            `int`: the number that `sliced.num_parameters()` will give.
        """
        family = family_of(model.config)
        body = model.base_model.get_submodule(family.body)
        total = model.num_parameters()
        head = Reader(model, family.head)
        embeddings = [Writer(body, name) for name in family.embeddings]

        def read(norm, readers, width):
            """Change where a norm is read: gains of an RMSNorm replace it, and its readers take in its bias."""
            change = width - sum(parameter.numel() for parameter in norm.parameters())
            for reader in readers:
                rows = reader.weight.shape[:-1]
                change -= rows.numel() * (self.hidden_size - width)
                if reader.bias is None and getattr(norm, "bias", None) is not None:
                    change += rows[-1]
            return change

        def written(writer, width):
            """Change in what writes, its bias included."""
            rows = writer.weight.shape[:-1].numel() + (writer.bias is not None)
            return -rows * (self.hidden_size - width)

        final_norm = getattr(body, family.final_norm)
        if self.tied:
            total += self.hidden_size * (self.widths[0] + self.widths[-1])
            total += self.hidden_size * (getattr(final_norm, "bias", None) is not None)
            total += read(final_norm, [], self.widths[-1])
        else:
            if model.config.tie_word_embeddings:
                total += head.weight.numel()
            total += sum(written(table, self.widths[0]) for table in embeddings)
            total += read(final_norm, [head], self.widths[-1])
        site = 0
        for layer in getattr(body, family.layers):
            for block in family.blocks:
                width_in, width_out = self.widths[site : site + 2]
                for norm, readers in block.reads:
                    readers = [Reader(layer, name) for name in readers]
                    total += read(layer.get_submodule(norm), readers, width_in)
                total += sum(written(Writer(layer, name), width_out) for name in block.writers)
                total += width_in * width_out
                site += 1
        return total


def keeps_tie(embeddings: str, model_config, widths) -> bool:
    """
    Whether a head that is tied to the embedding stays so.

    Args:
        embeddings (`str`): `"tied"`, `"sliced"`, or `"auto"` for what has fewer parameters.
        model_config (`PreTrainedConfig`): of the dense model.
        widths (`Sequence[int]`): one per site.

    Raises:
        ValueError: `"tied"` is asked for and the dense model is not.
    """
    tied = bool(model_config.tie_word_embeddings)
    if embeddings == "tied" and not tied:
        raise ValueError(
            "embeddings='tied', but this model's head has a matrix of its own; use embeddings='auto' or 'sliced'."
        )
    if embeddings != "auto" or not tied:
        return tied and embeddings == "tied"
    positions = model_config.max_position_embeddings if len(family_of(model_config).embeddings) > 1 else 0
    hidden_size, vocab_size = model_config.hidden_size, model_config.vocab_size
    shared = hidden_size * (vocab_size + positions + widths[0] + widths[-1])
    return shared <= (vocab_size + positions) * widths[0] + vocab_size * widths[-1]
