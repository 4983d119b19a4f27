"""The size and speed of a sliced model for every method, computed from the dense configuration alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..configuration import ROTATIONS, SliceGPTConfig
from ..modeling.decoder import Decoder, empty_model
from .sizes import product_size
from .widths import SlicePlan


@dataclass(frozen=True)
class Cost:
    """
    The size of a model, and the operations that it takes.

    Args:
        parameters (`int`): number of parameters; a matrix that two layers share counts once.
        bytes (`int`): size of the parameters.
        flops_per_token (`int`):
            Two for each multiplication in products with matrices: head, shortcuts, projections and the experts that a
            token is sent to included. Attention scores do not count, because their number depends on the length of the
            context.
    """

    parameters: int
    bytes: int
    flops_per_token: int


@dataclass(frozen=True)
class Outcome:
    """
    The outcome of one method at one size.

    Args:
        rotation (`str`): `"per_block"` or `"shared"`.
        embeddings (`str`): `"narrow"`, `"tied"` or `"sliced"`, see [`SlicePlan`].
        sparsity (`float`, *optional*): the sparsity that was asked for, unless it was a `parameter_reduction`.
        parameter_reduction (`float`, *optional*): the reduction that was asked for, unless it was a `sparsity`.
        widths (`list[int]`): one per site.
        neurons (`int`, *optional*): neurons that each MLP keeps; `None` for all.
        stock_size (`int`, *optional*): `hidden_size` of a stock class; `None` for a sliced class.
        cost ([`Cost`], *optional*): of the sliced model.
        change (`float`, *optional*): change in the number of parameters, relative to the dense model.
        energy_kept (`list[float]`, *optional*): share of the stream's energy that every site keeps, once measured.
        error (`str`, *optional*): why there is no such model.
    """

    rotation: str
    embeddings: str
    sparsity: float | None
    parameter_reduction: float | None
    widths: list[int] = field(default_factory=list)
    neurons: int | None = None
    stock_size: int | None = None
    cost: Cost | None = None
    change: float | None = None
    energy_kept: list[float] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Inspection:
    """
    A dense model, and the outcomes of slicing it.

    Args:
        model_type (`str`): the family.
        hidden_size (`int`): D.
        neurons (`int`, *optional*): neurons in each MLP; `None` where it is a mixture of experts.
        dtype (`str`): dtype in which bytes are counted.
        dense ([`Cost`]): of the dense model.
        sliced (`list[Outcome]`): one per method and size.
    """

    model_type: str
    hidden_size: int
    neurons: int | None
    dtype: str
    dense: Cost
    sliced: list[Outcome]


def inspect_dense(
    model_config,
    *,
    sparsities: Sequence[float],
    reductions: Sequence[float],
    dtype: str,
    round_to: int | None = None,
    round_neurons_to: int | None = None,
) -> Inspection:
    """
    Computes for every method and size how large and how fast the sliced model would be. Loads no weights.

    Args:
        model_config (`PreTrainedConfig`): of a dense model.
        sparsities (`Sequence[float]`): shares of hidden dimensions to delete.
        reductions (`Sequence[float]`): shares of parameters to delete.
        dtype (`str`): dtype in which to count bytes; `"auto"` is the dtype of the checkpoint.
        round_to (`int`, *optional*), round_neurons_to (`int`, *optional*): of [`SliceGPTConfig`].

    Raises:
        ValueError: the family cannot be sliced; a share is not in [0, 1).
    """
    hidden_size = model_config.hidden_size
    decoder = Decoder(empty_model(model_config))
    dtype = decoder.model.dtype if dtype == "auto" else getattr(torch, dtype)
    parameters, widths = decoder.model.num_parameters(), [hidden_size] * decoder.num_sites
    products = product_size(decoder, "sliced")(widths, shortcuts=False)
    dense = Cost(parameters, parameters * dtype.itemsize, 2 * products)
    sizes = [{"sparsity": share} for share in sparsities] + [{"parameter_reduction": share} for share in reductions]
    steps = {"round_to": round_to, "round_neurons_to": round_neurons_to}
    choices = ("narrow", "tied", "sliced") if model_config.tie_word_embeddings else ("sliced",)
    choices = ("tied",) if decoder.family.wide_entry else choices
    configs = [
        SliceGPTConfig(rotation=rotation, embeddings=embeddings, **steps, **size)
        for rotation in ROTATIONS
        for embeddings in choices
        for size in sizes
        if embeddings != "narrow" or rotation == "shared"
    ]
    return Inspection(
        model_type=model_config.model_type,
        hidden_size=hidden_size,
        neurons=None if decoder.family.keeps_neurons else decoder.num_neurons,
        dtype=str(dtype).removeprefix("torch."),
        dense=dense,
        sliced=[outcome(config, decoder, dense, dtype) for config in configs],
    )


def outcome(config: SliceGPTConfig, decoder: Decoder, dense: Cost, dtype: torch.dtype) -> Outcome:
    """
    Computes the outcome of a configuration.

    Args:
        config ([`SliceGPTConfig`]): says how to slice.
        decoder ([`Decoder`]): the dense model, whose tensors may be on `meta`.
        dense ([`Cost`]): of the dense model.
        dtype (`torch.dtype`): in which to count bytes.
    """
    keys = ("rotation", "embeddings", "sparsity", "parameter_reduction")
    asked = {key: getattr(config, key) for key in keys}
    try:
        plan = SlicePlan.from_config(config, decoder.config)
    except ValueError as error:
        return Outcome(**asked, error=str(error))
    parameters = plan.num_parameters(decoder.model)
    products = product_size(decoder, plan.embeddings)(plan.stored_widths, plan.neurons, plan.shortcuts)
    return Outcome(
        **asked,
        widths=list(plan.widths),
        neurons=plan.neurons,
        stock_size=plan.stock_size,
        cost=Cost(parameters, parameters * dtype.itemsize, 2 * products),
        change=parameters / dense.parameters - 1,
    )


@dataclass(frozen=True)
class Spectrum:
    """
    The energy of a dense model's stream along its axes. All tokens count alike, as they do behind a norm.

    Args:
        source (`str`): the text that the model read.
        tokens (`int`): number of tokens that the model read.
        energy (`dict[str, torch.Tensor]`):
            For each rotation, `(sites, D)`, float64, where every row adds up to 1: for `"per_block"` along the site's
            own principal axes (the eigenvalues of its second moment, descending), for `"shared"` along the axes that
            all sites share.
    """

    source: str
    tokens: int
    energy: dict[str, Tensor]

    def energy_kept(self, rotation: str, widths: Sequence[int]) -> list[float]:
        """
        Computes the share of its energy that every site keeps.

        Args:
            rotation (`str`): `"per_block"` or `"shared"`.
            widths (`Sequence[int]`): one per site.
        """
        rows = self.energy[rotation]
        return [1 - row[width:].sum().item() for row, width in zip(rows, widths, strict=True)]

    def widths_for(self, share: float) -> list[int]:
        """
        Computes for every site the smallest width that keeps a share of its energy, along the site's own axes.

        Args:
            share (`float`): share of the energy to keep, below 1.
        """
        return [int((row.cumsum(0) < share).sum()) + 1 for row in self.energy["per_block"]]


def add_energy(found: Inspection, spectrum: Spectrum) -> Inspection:
    """Returns an inspection with the energy that each outcome keeps, where the spectrum is along its axes."""
    sliced = [
        replace(each, energy_kept=spectrum.energy_kept(each.rotation, each.widths))
        if each.rotation in spectrum.energy and not each.error
        else each
        for each in found.sliced
    ]
    return replace(found, sliced=sliced)
