"""How a model was made: the record in `config.slicegpt`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel
from transformers.utils import logging

from .configuration import SliceGPTConfig
from .modeling.decoder import Decoder
from .planning.sizes import parameters_by_part
from .slicing.methods.refine import steps_of


if TYPE_CHECKING:
    from .data.batches import TokenBatches
    from .planning.widths import SlicePlan


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Calibration:
    """
    The calibration data of a run.

    Args:
        source (`str`): names of datasets or files, and `"self"` for text that the model wrote.
        tokens (`int`): number of tokens, padding left out.
        groups (`list[int]`): those of each source, in their order.
    """

    source: str
    tokens: int
    groups: list[int]


@dataclass(frozen=True)
class PartCounts:
    """
    Parameters by part, see [`sizes.PARTS`].

    Args:
        before (`dict[str, int]`): of the dense model.
        after (`dict[str, int]`): of the sliced one.
    """

    before: dict[str, int]
    after: dict[str, int]


@dataclass(frozen=True)
class Record:
    """
    The record of how a model was made. `config.slicegpt` holds it as a dictionary, to which an evaluation adds
    `perplexity`, and a recovery `recovery`.

    Args:
        base_model (`str`): public name of the dense model, see [`public_name`].
        sparsity, parameter_reduction, fit_memory, context, mlp_sparsity, schedule, rotation, refit, metric, round_to,
        round_neurons_to, slice_head, orientation, seed, dtype: settings of [`SliceGPTConfig`].
        refine (`int`): steps for which each MLP was trained but those of experts; 0 if there are no others.
        architecture (`str`): `"stock"` for a class that transformers has, else `"sliced"`.
        embeddings (`str`): `"narrow"`, `"tied"` or `"sliced"`, see [`SlicePlan`].
        hidden_size (`int`): D of the dense model.
        widths (`list[int]`): width of the stream at every site.
        all_neurons (`int`): in each MLP of the dense model.
        neurons (`int`, *optional*): kept in each MLP, on average; `None` where the MLPs stay as they are.
        calibration ([`Calibration`]): the data.
        parameters_before (`int`): of the dense model.
        parameters_after (`int`): of the sliced one.
        parameters_by_part ([`PartCounts`]): the same by part.
        energy_kept (`list[float]`): share of the stream's energy that is kept at every site.
        seconds (`dict[str, float]`): wall time by phase.
    """

    base_model: str
    sparsity: float | None
    parameter_reduction: float | None
    fit_memory: int | str | None
    context: int | None
    mlp_sparsity: float | None
    schedule: str
    rotation: str
    refit: bool
    refine: int
    metric: str
    round_to: int | None
    round_neurons_to: int | None
    slice_head: bool
    orientation: str
    seed: int | None
    dtype: str | None
    architecture: str
    embeddings: str
    hidden_size: int
    widths: list[int]
    all_neurons: int
    neurons: int | None
    calibration: Calibration
    parameters_before: int
    parameters_after: int
    parameters_by_part: PartCounts
    energy_kept: list[float]
    seconds: dict[str, float]


SETTINGS = (Record.__dataclass_fields__.keys() & SliceGPTConfig.__dataclass_fields__.keys()) - {
    "architecture",
    "embeddings",
    "refine",
    "widths",
}
"""Settings that are recorded as they were given."""


def record_run(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    plan: SlicePlan,
    config: SliceGPTConfig,
    batches: TokenBatches,
    energy_kept: list[float],
    seconds: Mapping[str, float],
) -> None:
    """
    Writes the record of a run to the sliced model, and warns if the model grew.

    Args:
        dense (`PreTrainedModel`), sliced (`PreTrainedModel`): the models; `meta` tensors will do.
        plan ([`SlicePlan`]), config ([`SliceGPTConfig`]), batches ([`TokenBatches`]): what the run was given.
        energy_kept (`list[float]`), seconds (`dict[str, float]`): what it found, see [`Record`].
    """
    decoder = Decoder(dense)
    before, after = parameters_by_part(decoder), parameters_by_part(Decoder(sliced))
    record = Record(
        **{name: getattr(config, name) for name in SETTINGS},
        base_model=public_name(dense.name_or_path),
        refine=steps_of(config, decoder, batches.ntokens),
        architecture="sliced" if plan.stock_size is None else "stock",
        embeddings=plan.embeddings,
        hidden_size=plan.hidden_size,
        widths=list(plan.widths),
        all_neurons=decoder.num_neurons,
        neurons=plan.neurons,
        calibration=Calibration(batches.source, batches.ntokens, batches.tokens_by_group),
        parameters_before=sum(before.values()),
        parameters_after=sum(after.values()),
        parameters_by_part=PartCounts(before, after),
        energy_kept=[round(share, 6) for share in energy_kept],
        seconds={phase: round(taken, 2) for phase, taken in seconds.items()},
    )
    sliced.config.slicegpt = asdict(record)
    if record.parameters_after > record.parameters_before:
        grew = f"The model grew from {record.parameters_before:,} to {record.parameters_after:,} parameters: "
        others = record.parameters_before - (record.parameters_after - after["head"])
        if plan.embeddings == "sliced" and not before["head"] and others > 0:
            logger.warning(
                f"{grew}the head, which shared the embedding's matrix, has one of its own with {after['head']:,}; all "
                f"other parts have {others:,} fewer. embeddings='auto' keeps one matrix where it can."
            )
        else:
            logger.warning(
                f"{grew}what slicing to widths of {min(plan.widths)} removes is less than shortcuts and projections "
                "add. Raise sparsity."
            )


def public_name(name_or_path: str) -> str:
    """
    Returns the part of a model's name that may be published.

    Args:
        name_or_path (`str`): a Hub id or a path that the model was loaded from, or "".

    Returns:
        `str`: a Hub id as it is, also if a path into the Hub's cache holds it. Of any other path, its last component.
        Hence a name with a slash is a Hub id.
    """
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]", name_or_path)
    if cached and _is_repo_id(cached[1].replace("--", "/")):
        return cached[1].replace("--", "/")
    if not name_or_path or (_is_repo_id(name_or_path) and not os.path.exists(name_or_path)):
        return name_or_path
    return PureWindowsPath(os.path.abspath(name_or_path)).name  # it knows both kinds of slashes


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "\n" not in name  # which is taken for an end
