"""How fast a model is, and how much faster than another: medians and spreads of repeated measurements."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """What the repeats gave, in order, with the median and the first and third quartile."""

    repeats: list[float]
    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, repeats: list[float]) -> "Spread":
        q1, median, q3 = statistics.quantiles(repeats, n=4, method="inclusive")
        return cls(repeats, median, q1, q3)


@dataclass(frozen=True)
class Phase:
    """
    Reading the prompts, or a step that makes a token of every sequence.

    Args:
        latency_ms ([`Spread`]): Time that it takes.
        tokens_per_s (`float`): Tokens read or made, over the median.
        gflops (`float`):
            Floating point operations, in 10⁹: products with matrices, attention scores left out. Of each prompt the
            head sees the last token only.
    """

    latency_ms: Spread
    tokens_per_s: float
    gflops: float

    @classmethod
    def of(cls, seconds: Iterable[float], tokens: int, flops: int) -> "Phase":
        latency_ms = Spread.of([1e3 * each for each in seconds])
        return cls(latency_ms, 1e3 * tokens / latency_ms.median, flops / 1e9)


@dataclass(frozen=True)
class Speed:
    """
    Of one model at one batch size.

    Args:
        model (`str`): its name.
        batch_size (`int`): sequences.
        prefill ([`Phase`]): The prompts are read, the cache is filled, and one token is predicted for each.
        decode ([`Phase`]): A step with the cache, mean over the steps of a pass.
        weights_gib (`float`): Of the parameters.
        cache_gib (`float`): Of keys and values at the end.
        peak_gib (`float`, *optional*):
            The parameters and the most that was allocated beside them. On CUDA devices; a CPU counts no such thing.
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
    How much faster a phase of one model is than that of another.

    Args:
        throughput ([`Spread`]): Ratio of tokens per second, repeat by repeat.
        flops (`float`): What it would be if time were floating point operations: the other's over the model's.
    """

    throughput: Spread
    flops: float

    @classmethod
    def of(cls, own: Phase, other: Phase) -> "Ratio":
        times = zip(other.latency_ms.repeats, own.latency_ms.repeats, strict=True)
        return cls(Spread.of([theirs / ours for theirs, ours in times]), other.gflops / own.gflops)


@dataclass(frozen=True)
class Speedup:
    """Of a model over the first one, at one batch size."""

    model: str
    baseline: str
    batch_size: int
    prefill: Ratio
    decode: Ratio
