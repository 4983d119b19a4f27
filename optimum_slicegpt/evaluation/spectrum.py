"""Measures the energy of the stream of a dense model along each axis, at every site."""

import torch
from transformers import PreTrainedModel

from ..configuration import SliceGPTConfig
from ..data.batches import TokenBatches
from ..linalg.axes import principal_axes
from ..modeling.checks import check_sliceable
from ..modeling.contexts import evaluating, undisturbed
from ..planning.inspection import Spectrum
from ..slicing.run import Computation
from ..slicing.state import Statistics
from ..slicing.statistics import DensePass
from ..storage.base import InMemory


@undisturbed()
def measure_spectrum(
    model: PreTrainedModel, batches: TokenBatches, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Spectrum:
    """
    Measures the spectrum of a dense model: one forward pass, and an eigen-decomposition for every site. The model is
    not changed.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        batches ([`TokenBatches`]): calibration data.
        device (`str`, *optional*): device that computes one layer at a time. By default that of the model.
        dtype (`torch.dtype`, *optional*): of the pass. By default that of the model.

    Returns:
        [`Spectrum`]: shares of each site's energy along its own axes and along axes that all sites share.

    Raises:
        ValueError: the model is sliced already, or of a family that cannot be sliced; activations are not finite.
    """
    check_sliceable(model)
    config = SliceGPTConfig(dtype=dtype, device=device)
    run, statistics = Computation(model, batches, config, InMemory(model, config)), Statistics()
    with evaluating(model):
        statistics.streams = [run.start()]
        for step in run.progress(DensePass(run, statistics).steps(), "Measuring", "layer"):
            step()
    moments = [moment / moment.trace() for moment in statistics.moments]
    # Without a metric, `shared_axes` has these axes, the first of them for any width.
    shared = principal_axes(sum(moments))[1]
    sites = run.progress(moments, "Eigenvalues", "site")
    energy = {
        "per_block": torch.stack([principal_axes(moment)[0] for moment in sites]),
        "shared": torch.stack([(shared * (moment @ shared)).sum(0) for moment in moments]),
    }
    return Spectrum(batches.source, batches.ntokens, {name: rows.cpu() for name, rows in energy.items()})
