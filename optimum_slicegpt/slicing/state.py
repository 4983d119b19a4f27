"""The state of a run between two of its steps: basis, statistics, decisions and streams; and the outcome of a run."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Basis:
    """
    The axes along which the stream of a site is read and written: x becomes `z = x @ write`, and `z @ read.T`
    approximates x.

    With the scale c = √(k/D), a stock RMSNorm over k dimensions divides as the dense norm over D dimensions does, eps
    included.

    Args:
        axes (`torch.Tensor` of shape `(D, k)`, float64): orthonormal, the axes that are kept, Q.
        metric_dual (`torch.Tensor` of shape `(D, k)`, float64, *optional*): see [`Basis.from_axes`].
        frame (`torch.Tensor` of shape `(D, D)`, float64, *optional*): the axes, followed by the deleted ones.
    """

    axes: Tensor
    metric_dual: Tensor | None = None
    frame: Tensor | None = None

    @classmethod
    def from_axes(cls, axes: Tensor, metric: Tensor | None = None) -> "Basis":
        """
        Builds the basis whose `z @ read.T` is, to a metric M, the nearest to x.

        Args:
            axes (`torch.Tensor` of shape `(D, k)`, float64): orthonormal, Q.
            metric (`torch.Tensor` of shape `(D, D)`, float64, *optional*): M, positive definite.

        Returns:
            [`Basis`]: whose dual is `M Q (Qᵀ M Q)⁻¹`, and Q without a metric.
        """
        if metric is None:
            return cls(axes)
        return cls(axes, torch.linalg.solve(axes.T @ metric @ axes, axes.T @ metric).T)

    @property
    def dual(self) -> Tensor:
        """The axes `(D, k)` that are written: `dual.T @ axes` is the identity."""
        return self.axes if self.metric_dual is None else self.metric_dual

    @property
    def width(self) -> int:
        return self.axes.shape[1]

    @property
    def scale(self) -> float:
        return (self.width / len(self.axes)) ** 0.5

    @property
    def read(self) -> Tensor:
        """Q / c `(D, k)`: readers are multiplied by it (SliceGPT, equations 4 and 7)."""
        return self.axes / self.scale

    @property
    def write(self) -> Tensor:
        """Q c `(D, k)`, with a metric its dual times c: writers are multiplied by it (SliceGPT, equations 5 and 6)."""
        return self.dual * self.scale

    def centred(self) -> "Basis":
        """Returns the basis that subtracts the mean of what is written, as LayerNorm does: `(I - 11ᵀ/D) dual`."""
        return replace(self, metric_dual=self.dual - self.dual.mean(0, keepdim=True))

    def shortcut(self, there: "Basis") -> Tensor:
        """Returns the matrix `(k, k')` that leads from this site's stream to the next one's (SliceGPT, figure 4)."""
        return self.axes.T @ there.dual * (there.scale / self.scale)


@dataclass
class Statistics:
    """
    Sums over calibration tokens, of the dense model. The stream is in units of each token's root mean square r, as its
    readers see it: x / r. Entries are what `Storage.keep` makes of tensors.

    Args:
        moments (`list`): for every site, the second moment of the stream `(D, D)`, float64.
        gradients (`list`): for every site, the second moment of the loss gradient with respect to x / r.
        costs (`list`): for every layer, what each neuron of its MLP adds to the stream `(neurons,)`, squared.
        streams (`list[list]`): the stream before each layer that a pass still needs, a tensor `(B, T, D)` a batch.
        gradient (`list`): the gradient at the site that the way back has reached, a tensor `(B, T, D)` a batch.
    """

    moments: list = field(default_factory=list)
    gradients: list = field(default_factory=list)
    costs: list = field(default_factory=list)
    streams: list = field(default_factory=list)
    gradient: list = field(default_factory=list)


@dataclass
class State:
    """
    Everything that the remaining steps and the report need. A run that resumes starts from it.

    Args:
        x (`list`): the dense stream `(B, T, D)` of each batch, as `Storage.keep` has it.
        z (`list`): the sliced stream `(B, T, k)` of each batch.
        neurons (`list`): neurons that the MLP of each layer keeps, `None` where it keeps all.
        generator (`torch.Generator`): of random orientations.
        basis ([`Basis`], *optional*): of the site that the run has reached.
        axes (`torch.Tensor` of shape `(D, k)`, *optional*): those that all sites share.
        statistics ([`Statistics`]): what was measured before the first layer is sliced.
        energy_kept (`list[float]`): share of the stream's energy that is kept at every site so far.
        seconds (`dict[str, float]`): wall time by phase.
    """

    x: list
    z: list
    neurons: list
    generator: torch.Generator
    basis: Basis | None = None
    axes: Tensor | None = None
    statistics: Statistics = field(default_factory=Statistics)
    energy_kept: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dictionaries and lists of numbers, tensors and what `Storage.keep` made of tensors."""
        return vars(self) | {
            "basis": None if self.basis is None else vars(self.basis),
            "statistics": vars(self.statistics),
            "generator": self.generator.get_state(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "State":
        generator = torch.Generator()
        generator.set_state(saved["generator"].to("cpu"))
        return cls(
            **saved
            | {
                "basis": None if saved["basis"] is None else Basis(**saved["basis"]),
                "statistics": Statistics(**saved["statistics"]),
                "generator": generator,
                "seconds": defaultdict(float, saved["seconds"]),
            }
        )


@dataclass
class SlicedResult:
    """
    The outcome of a run.

    Args:
        model (`PreTrainedModel`): the sliced model; shares with the dense one the tensors that slicing leaves alone.
        energy_kept (`list[float]`): share of the stream's energy that is kept at every site.
        seconds (`dict[str, float]`): wall time by phase.
    """

    model: PreTrainedModel
    energy_kept: list[float]
    seconds: dict[str, float]
