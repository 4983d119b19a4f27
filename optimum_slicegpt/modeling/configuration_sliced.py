"""Configurations of sliced models: a family's own configuration, plus the width of the stream at every site."""

from contextlib import contextmanager
from functools import cache

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .families import FAMILIES, check_equal_widths, family_of, num_neurons


class SlicedConfigMixin:
    """
    Fields that a sliced configuration adds to those of its family.

    - `hidden_size`: width of the last hidden state, which heads read.
    - `original_hidden_size`: hidden size D of the dense model.
    - `widths`: width of the stream at every site, from the first norm to the final one.
    - `embedding_size`: D where embeddings and head keep their width, mostly because they share a matrix. Then a linear
      layer leads from the embeddings to the first site, and another from the final norm back to D dimensions.
    - `shortcuts`: whether every site has a basis of its own. Then a linear layer on each residual connection leads
      from one basis to the next. Without shortcuts, all sites share one basis and one width.
    - `intermediate_sizes`: number of neurons in every layer's MLP, where layers differ. Then the family's own key
      holds the largest.
    - `head_dim`: always explicit, because it does not follow from a width.
    - `slicegpt`: the record of how the model was made; nothing is computed from it.
    """

    def __post_init__(self, **kwargs):
        if self.head_dim is None and hasattr(self, "num_attention_heads"):
            self.head_dim = (self.original_hidden_size or self.hidden_size) // self.num_attention_heads
        with self.dense_sizes():  # from which some families derive sizes of heads, or multipliers
            super().__post_init__(**kwargs)

    def validate_architecture(self):
        """
        Checks the widths against the sites, and the numbers of neurons against the MLPs.

        Raises:
            ValueError: `widths` has another length than the model has sites, holds values outside 1 to
                `original_hidden_size`, or different ones where the family needs one width; `hidden_size` is not the
                width of the last hidden state; `intermediate_sizes` does not fit the number of layers or the MLPs.
        """
        if self.intermediate_sizes is not None:
            self._validate_intermediate_sizes()
        if self.widths is None:
            return
        sites = family_of(self).num_sites(self)
        if len(self.widths) != sites:
            raise ValueError(f"widths has {len(self.widths)} entries; this model has {sites} sites, one width each.")
        if not all(1 <= width <= self.original_hidden_size for width in self.widths):
            raise ValueError(
                f"widths={self.widths}; every width must lie between 1 and the original hidden size, "
                f"{self.original_hidden_size}."
            )
        check_equal_widths(self, self.widths, tied=self.embedding_size is not None)
        if not self.shortcuts and len(set(self.widths)) > 1:
            raise ValueError(f"widths={self.widths}; without shortcuts all sites must be equally wide.")
        last = self.embedding_size or self.widths[-1]
        if self.hidden_size != last:
            raise ValueError(
                f"hidden_size={self.hidden_size}; it must equal the width of the last hidden state, {last}."
            )

    def _validate_intermediate_sizes(self):
        family, sizes = family_of(self), self.intermediate_sizes
        most = num_neurons(self)
        if len(sizes) != self.num_hidden_layers or min(sizes) < 1 or max(sizes) != most or family.keeps_neurons:
            raise ValueError(
                f"intermediate_sizes={sizes}; it must hold one positive integer for each of {self.num_hidden_layers} "
                f"layers, the largest of which is {most}, by {family.neurons_key}, and experts have none."
            )

    def validate_rope(self):
        # Attention heads keep the size that they have in the dense model.
        with self.dense_sizes():
            super().validate_rope()

    @contextmanager
    def dense_sizes(self):
        """Holds the dense model's sizes while the family's own constructors run."""
        sliced = {key: getattr(self, key) for key in family_of(self).size_keys}
        # Writing to `__dict__` skips the validation of fields, which the sizes in between would not pass.
        self.__dict__.update(dict.fromkeys(self._own_keys(sliced), self.original_hidden_size or self.hidden_size))
        try:
            yield self
        finally:
            self.__dict__.update(zip(self._own_keys(sliced), sliced.values(), strict=True))

    def _own_keys(self, keys):
        return [self.attribute_map.get(key, key) for key in keys]


# These files travel with checkpoints to installations whose transformers may lack a family.
SLICED_CONFIG_NAMES: dict[str, str] = {
    f"Sliced{CONFIG_MAPPING_NAMES[model_type]}": model_type
    for model_type in FAMILIES
    if model_type in CONFIG_MAPPING_NAMES
}
"""Families by the names of their sliced configuration classes."""


@cache
def sliced_config_class(model_type: str) -> type:
    """Derives a sliced configuration class from a family's configuration."""
    base = CONFIG_MAPPING[model_type]
    fields = {
        "widths": list[int] | None,
        "original_hidden_size": int | None,
        "embedding_size": int | None,
        "shortcuts": bool,
        "intermediate_sizes": list[int] | None,
        "head_dim": int | None,  # Some families have no such field, and Falcon's is computed from the hidden size.
        "slicegpt": dict | None,
    }
    namespace = {
        "__module__": __name__,
        "__annotations__": fields,
        "__doc__": f"Configuration of a sliced {model_type} model. Its own fields: see [`SlicedConfigMixin`].",
        "model_type": f"sliced_{model_type}",
        **dict.fromkeys(fields),
        "shortcuts": True,
    }
    if "head_dim" in base.attribute_map:  # which stands for another field
        del fields["head_dim"], namespace["head_dim"]
    config_class = strict(type(f"Sliced{base.__name__}", (SlicedConfigMixin, base), namespace))
    config_class.register_for_auto_class()
    return config_class


def __getattr__(name: str):
    # pickle and transformers find a class by its name in its module. Deriving all of them takes seconds.
    if name in SLICED_CONFIG_NAMES:
        return sliced_config_class(SLICED_CONFIG_NAMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
