"""Summarises repeated measurements of speed: how fast a model is, and how much faster than another one."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """
    Values of repeated measurements.

    Args:
        repeats (`list[float]`): all values, in order.
        median (`float`), q1 (`float`), q3 (`float`): their median, first and third quartile.
    """

    repeats: list[float]
    median: float
    q1: float
    q3: float

    @classmethod
    def from_repeats(cls, repeats: list[float]) -> "Spread":
        """
        Computes median and quartiles of at least two values.

        Examples:
            >>> Spread.from_repeats([6.0, 2.0, 4.0])
            Spread(repeats=[6.0, 2.0, 4.0], median=4.0, q1=3.0, q3=5.0)
        """
        q1, median, q3 = statistics.quantiles(repeats, n=4, method="inclusive")
        return cls(repeats, median, q1, q3)


@dataclass(frozen=True)
class Phase:
    """
    Speed of one phase of generation: reading the prompts, or one step that adds a token to every sequence.

    Args:
        latency_ms ([`Spread`]): Time that the phase takes.
        tokens_per_s (`float`): Tokens read or added, divided by the median of that time.
        gflops (`float`):
            Floating point operations, in 10⁹: products with weight matrices, without attention scores. Of each prompt
            the head reads the last token only.
    """

    latency_ms: Spread
    tokens_per_s: float
    gflops: float

    @classmethod
    def from_seconds(cls, seconds: Iterable[float], tokens: int, flops: int) -> "Phase":
        """
        Summarises a phase.

        Args:
            seconds (`Iterable[float]`): time of every repeat.
            tokens (`int`): read or added in one repeat.
            flops (`int`): of one repeat.
        """
        latency_ms = Spread.from_repeats([1e3 * each for each in seconds])
        return cls(latency_ms, 1e3 * tokens / latency_ms.median, flops / 1e9)


@dataclass(frozen=True)
class Speed:
    """
    Speed and memory of one model at one batch size.

    Args:
        model (`str`): name of the model.
        batch_size (`int`): number of sequences.
        prefill ([`Phase`]): The model reads the prompts, fills the cache, and predicts one token for each.
        decode ([`Phase`]): A step with the cache, mean over the steps of a pass.
        weights_gib (`float`): Memory of the parameters.
        cache_gib (`float`): Memory of keys and values at the end.
        peak_gib (`float`, *optional*):
            Memory of the parameters, and the most that was allocated beside them. `None` on a CPU, where it is not
            counted.
    """

    model: str
    batch_size: int
    prefill: Phase
    decode: Phase
    weights_gib: float
    cache_gib: float
    peak_gib: float | None


@dataclass(frozen=True)
class Ratio:
    """
    Ratio of the speed of one model to that of a baseline, in one phase.

    Args:
        throughput ([`Spread`]): Ratio of tokens per second, repeat by repeat.
        flops (`float`): Floating point operations of the baseline divided by those of the model.
    """

    throughput: Spread
    flops: float

    @classmethod
    def from_phases(cls, model: Phase, baseline: Phase) -> "Ratio":
        """Compares the same phase of two models, measured in turns."""
        times = zip(baseline.latency_ms.repeats, model.latency_ms.repeats, strict=True)
        throughput = Spread.from_repeats([before / after for before, after in times])
        return cls(throughput, baseline.gflops / model.gflops)


@dataclass(frozen=True)
class Speedup:
    """
    Ratios of the speed of a model to that of a baseline, at one batch size.

    Args:
        model (`str`), baseline (`str`): names of both.
        batch_size (`int`): number of sequences.
        prefill ([`Ratio`]), decode ([`Ratio`]): of both phases.
    """

    model: str
    baseline: str
    batch_size: int
    prefill: Ratio
    decode: Ratio
