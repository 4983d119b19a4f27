"""What slicing would make of a model, method by method, told from its configuration alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from .configuration import ROTATIONS, SliceGPTConfig
from .modeling.families import family_of
from .sizes import mlp_inner, on_meta, product_size
from .widths import SlicePlan


@dataclass(frozen=True)
class Cost:
    """
    What a model takes.

    Args:
        parameters (`int`): a matrix that two layers share counts once.
        bytes (`int`): of the parameters.
        flops_per_token (`int`):
            Of products with matrices, two a multiplication: head, shortcuts, projections and the experts that a token
            is sent to included, attention scores, whose number depends on the length of the context, left out.
    """

    parameters: int
    bytes: int
    flops_per_token: int


@dataclass(frozen=True)
class Outcome:
    """
    What one way of slicing leads to.

    Args:
        rotation (`str`): `"per_block"` or `"shared"`.
        embeddings (`str`): `"tied"` or `"sliced"`.
        sparsity (`float`, *optional*): what was asked for, if not `parameter_reduction`.
        parameter_reduction (`float`, *optional*): what was asked for, if not `sparsity`.
        widths (`list[int]`): one per site.
        inner (`int`, *optional*): neurons kept in each MLP; `None` where they stay.
        cost ([`Cost`], *optional*): of the sliced model.
        change (`float`, *optional*): of the number of parameters, relative to the dense model.
        energy_kept (`list[float]`, *optional*): share of the stream's energy that is kept, per site; once measured.
        error (`str`, *optional*): why there is no such model.
    """

    rotation: str
    embeddings: str
    sparsity: float | None
    parameter_reduction: float | None
    widths: list[int] = field(default_factory=list)
    inner: int | None = None
    cost: Cost | None = None
    change: float | None = None
    energy_kept: list[float] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Inspection:
    """
    A dense model and what it can become.

    Args:
        model_type (`str`): the family.
        hidden_size (`int`): D.
        inner (`int`, *optional*): neurons in each MLP; `None` where it is a mixture of experts.
        dtype (`str`): in which bytes are counted.
        dense ([`Cost`]): of the model as it is.
        sliced (`list[Outcome]`): one per method and size.
    """

    model_type: str
    hidden_size: int
    inner: int | None
    dtype: str
    dense: Cost
    sliced: list[Outcome]


def inspect_dense(
    model_config, *, sparsities: Sequence[float], reductions: Sequence[float], dtype: str, round_to: int
) -> Inspection:
    """
    Tells for every method and size how large and how fast the sliced model would be. Loads no weights.

    Args:
        model_config (`PreTrainedConfig`): of a dense model.
        sparsities (`Sequence[float]`): shares of hidden dimensions to delete.
        reductions (`Sequence[float]`): shares of parameters to delete.
        dtype (`str`): in which to count bytes; `"auto"` is that of the checkpoint.
        round_to (`int`): of [`SliceGPTConfig`].

    Raises:
        ValueError: the family cannot be sliced; a share that cannot be.
    """
    family, hidden_size = family_of(model_config), model_config.hidden_size
    model = on_meta(model_config)
    dtype = model.dtype if dtype == "auto" else getattr(torch, dtype)
    parameters, widths = model.num_parameters(), [hidden_size] * family.num_sites(model_config)
    products = product_size(model, tied=False)(widths, shortcuts=False)
    dense = Cost(parameters, parameters * dtype.itemsize, 2 * products)
    sizes = [{"sparsity": share} for share in sparsities] + [{"parameter_reduction": share} for share in reductions]
    configs = [
        SliceGPTConfig(rotation=rotation, embeddings=embeddings, round_to=round_to, **size)
        for rotation in ROTATIONS
        for embeddings in (("tied", "sliced") if model_config.tie_word_embeddings else ("sliced",))
        for size in sizes
    ]
    return Inspection(
        model_type=model_config.model_type,
        hidden_size=hidden_size,
        inner=None if family.moe else mlp_inner(model_config),
        dtype=str(dtype).removeprefix("torch."),
        dense=dense,
        sliced=[outcome(config, model, dense, dtype) for config in configs],
    )


def outcome(config: SliceGPTConfig, model: PreTrainedModel, dense: Cost, dtype: torch.dtype) -> Outcome:
    """What a configuration makes of a dense model, whose tensors may be on `meta`."""
    keys = ("rotation", "embeddings", "sparsity", "parameter_reduction")
    asked = {key: getattr(config, key) for key in keys}
    try:
        plan = SlicePlan.from_config(config, model.config)
    except ValueError as error:
        return Outcome(**asked, error=str(error))
    parameters = plan.num_parameters(model)
    products = product_size(model, plan.tied)(plan.widths, plan.inner, plan.shortcuts)
    return Outcome(
        **asked,
        widths=list(plan.widths),
        inner=plan.inner,
        cost=Cost(parameters, parameters * dtype.itemsize, 2 * products),
        change=parameters / dense.parameters - 1,
    )
