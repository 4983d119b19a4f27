"""Width of the stream at every site, and what it costs, solved before any weight changes."""

from dataclasses import dataclass

from .configuration import SliceGPTConfig
from .modeling.families import family_of


@dataclass(frozen=True)
class SlicePlan:
    """
    What a run will keep.

    Args:
        hidden_size (`int`): D of the dense model.
        widths (`tuple[int, ...]`): width at every site, from the first norm to the final one.
    """

    hidden_size: int
    widths: tuple[int, ...]

    @classmethod
    def from_config(cls, config: SliceGPTConfig, model_config) -> "SlicePlan":
        """
        Solves the widths for a model.

        Args:
            config ([`SliceGPTConfig`]): gives `widths`, or `sparsity`, `round_to` and `slice_head`.
            model_config (`PreTrainedConfig`): of the dense model.

        Raises:
            ValueError: the family cannot be sliced, `widths` do not fit the model, or nothing would be left.
        """
        hidden_size = model_config.hidden_size
        sites = family_of(model_config).num_sites(model_config)
        if config.widths is not None:
            if len(config.widths) != sites:
                raise ValueError(f"widths has {len(config.widths)} entries; this model has {sites} sites.")
            if max(config.widths) > hidden_size:
                raise ValueError(f"widths holds {max(config.widths)}, more than the hidden size, {hidden_size}.")
            return cls(hidden_size, tuple(config.widths))
        width = int((1 - config.sparsity) * hidden_size)
        if config.sparsity > 0:
            width -= width % config.round_to
        if width < 1:
            raise ValueError(
                f"sparsity={config.sparsity} leaves no dimension of {hidden_size} when rounded down to a multiple of "
                f"round_to={config.round_to}; lower either."
            )
        return cls(hidden_size, (width,) * (sites - 1) + (width if config.slice_head else hidden_size,))

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
        head = model.get_submodule(family.head)
        embeddings = [body.get_submodule(name) for name in family.embeddings]
        if head.weight is embeddings[0].weight:
            total += head.weight.numel()

        def resized(module, removed_in=0, removed_out=0, new_bias=False):
            """Change in a linear layer's parameters."""
            rows, columns = module.weight.shape
            change = (rows - removed_out) * (columns - removed_in) - rows * columns
            if module.bias is not None:
                return change - removed_out
            return change + (rows if new_bias else 0)

        def norm_change(norm, width):
            """A dense norm's parameters give way to the gains of an RMSNorm."""
            return width - sum(parameter.numel() for parameter in norm.parameters())

        removed = [self.hidden_size - width for width in self.widths]
        total -= sum(table.weight.shape[0] for table in embeddings) * removed[0]
        site = 0
        for layer in getattr(body, family.layers):
            for block in family.blocks(model.config):
                for norm_name, readers in block.reads:
                    norm = layer.get_submodule(norm_name)
                    bias = getattr(norm, "bias", None) is not None
                    total += norm_change(norm, self.widths[site])
                    total += sum(resized(layer.get_submodule(name), removed[site], 0, bias) for name in readers)
                for name in block.writers:
                    total += resized(layer.get_submodule(name), 0, removed[site + 1])
                total += self.widths[site] * self.widths[site + 1]
                site += 1
        norm = getattr(body, family.final_norm)
        bias = getattr(norm, "bias", None) is not None
        return total + norm_change(norm, self.widths[-1]) + resized(head, removed[-1], 0, bias)
