"""The energy of the residual stream: how much of it lies along each axis, at every site of a dense model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .assembly import evaluating
from .calibration import TokenBatches
from .configuration import SliceGPTConfig
from .dense_pass import DensePass
from .inspection import Inspection
from .modeling.families import family_of
from .quantizer import check_sliceable
from .rotation import principal_axes
from .storage import InMemory
from .walk import Walk
from .widths import SlicePlan


@dataclass(frozen=True)
class Spectrum:
    """
    What a dense model's stream holds along its axes. Every token counts the same, as it does for the norms.

    Args:
        source (`str`): what the model read.
        tokens (`int`): how much of it.
        energy (`dict[str, torch.Tensor]`):
            By rotation, `(sites, D)`, float64, each row's sum 1: along every site's own principal axes (`"per_block"`,
            the eigenvalues of its second moment, descending), and along the axes that all sites share (`"shared"`).
    """

    source: str
    tokens: int
    energy: dict[str, Tensor]

    def kept(self, rotation: str, widths: Sequence[int]) -> list[float]:
        """Share of the energy that is left at every site when it is cut to a width."""
        rows = self.energy[rotation]
        return [1 - row[width:].sum().item() for row, width in zip(rows, widths, strict=True)]

    def widths_for(self, share: float) -> list[int]:
        """The smallest width at every site that keeps a share of the energy, below 1, along the site's own axes."""
        return [int((row.cumsum(0) < share).sum()) + 1 for row in self.energy["per_block"]]


@torch.no_grad()
def measure_spectrum(
    model: PreTrainedModel, batches: TokenBatches, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Spectrum:
    """
    One pass over a dense model, which is not changed, and an eigen-decomposition for every site.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        batches ([`TokenBatches`]): what it reads.
        device (`str`, *optional*): computes one layer at a time here. Where the model is by default.
        dtype (`torch.dtype`, *optional*): of the pass. The model's own by default.

    Raises:
        ValueError: the model is sliced already, or of no family that can be; activations are not finite.
    """
    check_sliceable(model)
    full = [model.config.hidden_size] * family_of(model.config).num_sites(model.config)
    config = SliceGPTConfig(widths=full, dtype=dtype, device=device)
    walk = Walk(model, SlicePlan.from_config(config, model.config), batches.batches, config, InMemory(model, config))
    moments = {}
    with evaluating(model):
        walk.start()
        for step in walk.progress(DensePass(walk, len(walk.batches), moments).steps(), desc="Measuring"):
            step()
    moments = [moment / moment.trace() for moment in moments["signal"]]
    shared = principal_axes(sum(moments))[1]  # as `shared_axes` has them
    sites = logging.tqdm(moments, desc="Eigenvalues", unit="site", disable=None)
    energy = {
        "per_block": torch.stack([principal_axes(moment)[0] for moment in sites]),
        "shared": torch.stack([(shared * (moment @ shared)).sum(0) for moment in moments]),
    }
    return Spectrum(batches.source, batches.ntokens, {name: rows.cpu() for name, rows in energy.items()})


def with_energy(found: Inspection, spectrum: Spectrum) -> Inspection:
    """What was told from a configuration alone, with the energy that each way of slicing keeps."""
    sliced = [
        replace(each, energy_kept=None if each.error else spectrum.kept(each.rotation, each.widths))
        for each in found.sliced
    ]
    return replace(found, sliced=sliced)
