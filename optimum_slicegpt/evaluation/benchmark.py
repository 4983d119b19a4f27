"""Measures speed and memory of models that generate: in one process and in turns, so that noise affects all alike."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from ..modeling.caches import cache_argument, held_bytes
from ..modeling.contexts import evaluating
from ..modeling.decoder import Decoder
from ..modeling.families import family_of
from ..planning.sizes import flops_per_token
from ..progress import Progress
from .speed import Phase, Ratio, Speed, Speedup


@dataclass(frozen=True)
class Settings:
    """
    Settings of [`benchmark`].

    Args:
        batch_sizes (`tuple[int, ...]`, defaults to `(1,)`): Numbers of sequences, measured one after another.
        seqlen (`int`, defaults to 512): Tokens in each prompt.
        new_tokens (`int`, defaults to 32): Tokens that are added to each sequence.
        warmup (`int`, defaults to 2): Passes that are not measured, before the others.
        repeats (`int`, defaults to 7): Passes that are measured.
        compile (`bool`, defaults to `False`):
            Whether to compile models by `torch.compile`, with a static cache. They compile in the first pass of each
            batch size.
        seed (`int`, defaults to 0): Seeds the prompts' token ids, which are random.

    Raises:
        ValueError: a number is out of its range.
    """

    batch_sizes: tuple[int, ...] = (1,)
    seqlen: int = 512
    new_tokens: int = 32
    warmup: int = 2
    repeats: int = 7
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, least in {"seqlen": 1, "new_tokens": 1, "warmup": 0, "repeats": 2}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if min(self.batch_sizes, default=0) < 1:
            raise ValueError(f"batch_sizes={self.batch_sizes} must hold numbers of at least 1.")
        if self.compile and not self.warmup:
            raise ValueError("warmup=0 with compile=True would measure the compiler; give at least 1.")

    def check(self, model_config) -> None:
        """
        Checks that a model can be measured with these settings.

        Args:
            model_config (`PretrainedConfig`): of the model.

        Raises:
            ValueError: the model has positions for fewer tokens; the table of families, from which FLOPs are counted,
                has no row for it.
        """
        family_of(model_config)
        positions, needed = getattr(model_config, "max_position_embeddings", None), self.seqlen + self.new_tokens
        if positions and needed > positions:
            raise ValueError(
                f"seqlen={self.seqlen} and new_tokens={self.new_tokens} make {needed:,} tokens, and the model has "
                f"positions for {positions:,}; lower either."
            )


@dataclass(frozen=True)
class Benchmark:
    """
    Result of [`benchmark`].

    Args:
        settings ([`Settings`]): those of the call.
        dtype (`str`): of the models.
        device (`str`): device of the models.
        threads (`int`): threads of the CPU.
        speeds (`list[Speed]`): of every model at every batch size.
        speedups (`list[Speedup]`): of every model except the first, over the first.
    """

    settings: Settings
    dtype: str
    device: str
    threads: int
    speeds: list[Speed]
    speedups: list[Speedup]


@dataclass(frozen=True)
class Pass:
    """
    Measurements of one pass.

    Args:
        prefill_s (`float`): seconds to read the prompts and predict one token.
        decode_s (`float`): seconds of a step with the cache, mean over all steps.
        cache_bytes (`int`): of keys, values and states at the end.
        peak_bytes (`int`, *optional*): the most that was allocated beside the parameters; `None` on a CPU.
    """

    prefill_s: float
    decode_s: float
    cache_bytes: int
    peak_bytes: int | None


def benchmark(models: Mapping[str, PreTrainedModel], settings: Settings | None = None) -> Benchmark:
    """
    Measures how fast models read prompts and continue them greedily. The models take turns, pass by pass, and every
    other turn is in reverse order.

    Args:
        models (`Mapping[str, PreTrainedModel]`):
            Causal language models by name, on one device and in one dtype. The first is the baseline of the others.
        settings ([`Settings`], *optional*): defaults to `Settings()`.

    Returns:
        [`Benchmark`]: `dataclasses.asdict` makes it a dictionary that JSON can hold.

    Raises:
        ValueError: a model has too few positions or is of an unknown family; the models are on different devices or in
            different dtypes.
    """
    settings = settings or Settings()
    first, *others = models
    device, dtype = models[first].device, models[first].dtype
    for name, model in models.items():
        settings.check(model.config)
        if (model.device, model.dtype) != (device, dtype):
            raise ValueError(
                f"{name!r} is on {model.device} in {model.dtype}, {first!r} on {device} in {dtype}; move them to one "
                "device and to one dtype."
            )
    flops = {name: flops_per_token(Decoder(model)) for name, model in models.items()}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        passes = run_passes(models, settings)
    speeds = {
        (name, batch_size): summarise_passes(name, models[name], flops[name], batch_size, settings.seqlen, measured)
        for (name, batch_size), measured in passes.items()
    }
    pairs = [(speeds[name, size], speeds[first, size]) for size in settings.batch_sizes for name in others]
    return Benchmark(
        settings=settings,
        dtype=str(dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
        speeds=list(speeds.values()),
        speedups=[
            Speedup(
                model=model.model,
                baseline=first,
                batch_size=model.batch_size,
                prefill=Ratio.from_phases(model.prefill, baseline.prefill),
                decode=Ratio.from_phases(model.decode, baseline.decode),
            )
            for model, baseline in pairs
        ],
    )


def run_passes(models: Mapping[str, PreTrainedModel], settings: Settings) -> dict[tuple[str, int], list[Pass]]:
    """Runs all passes, and returns the measured ones by the model's name and the batch size."""
    passes = {(name, batch_size): [] for batch_size in settings.batch_sizes for name in models}
    forwards = {name: torch.compile(model) if settings.compile else model for name, model in models.items()}
    vocab_size = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(settings.seed)
    total = len(passes) * (settings.warmup + settings.repeats)
    with Progress(total, "Benchmark", "turn") as progress:
        for batch_size in settings.batch_sizes:
            ids = torch.randint(vocab_size, (batch_size, settings.seqlen), generator=generator, device="cpu")
            for turn in range(-settings.warmup, settings.repeats):
                for name in list(models)[:: -1 if turn % 2 else 1]:
                    measured = time_pass(models[name], forwards[name], ids, settings)
                    if turn >= 0:
                        passes[name, batch_size].append(measured)
                    progress.update()
    return passes


@torch.no_grad()
def time_pass(model: PreTrainedModel, forward: Callable, ids: Tensor, settings: Settings) -> Pass:
    """
    Times one pass: a model reads the prompts, then adds tokens one by one.

    Args:
        model (`PreTrainedModel`): the model that is measured.
        forward (`Callable`): the model itself, or its compiled form.
        ids (`torch.Tensor` of shape `(B, T)`, int64): the prompts.
        settings ([`Settings`]): those of the benchmark.
    """
    device, cuda = model.device, model.device.type == "cuda"
    ids, name = ids.to(device), cache_argument(model)
    if settings.compile:  # A cache that grows would be compiled anew at every step.
        cache = StaticCache(config=model.config, max_cache_len=settings.seqlen + settings.new_tokens)
    else:
        cache = DynamicCache(config=model.config)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)

    times = [read_clock(device)]
    for count in (1, settings.new_tokens):
        for _ in range(count):
            output = forward(input_ids=ids, use_cache=True, logits_to_keep=1, **{name: cache})
            ids = output.logits[:, -1:].argmax(-1)
        times.append(read_clock(device))
    start, read, end = times
    return Pass(
        prefill_s=read - start,
        decode_s=(end - read) / settings.new_tokens,
        cache_bytes=held_bytes(cache),
        peak_bytes=torch.cuda.max_memory_allocated(device) - before if cuda else None,
    )


def read_clock(device: torch.device) -> float:
    """Waits until a device has done all its work, and returns the time in seconds."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def summarise_passes(
    name: str, model: PreTrainedModel, flops: int, batch_size: int, seqlen: int, passes: list[Pass]
) -> Speed:
    """
    Summarises the passes of one model at one batch size.

    Args:
        name (`str`): of the model.
        model (`PreTrainedModel`): the model.
        flops (`int`): of a token, head included.
        batch_size (`int`): number of sequences.
        seqlen (`int`): tokens in each prompt.
        passes (`list[Pass]`): the measured ones.
    """
    head = 2 * model.get_output_embeddings().weight.numel()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    peaks = [weights + each.peak_bytes for each in passes if each.peak_bytes is not None]
    prompts = batch_size * (seqlen * (flops - head) + head)
    return Speed(
        model=name,
        batch_size=batch_size,
        prefill=Phase.from_seconds((each.prefill_s for each in passes), batch_size * seqlen, prompts),
        decode=Phase.from_seconds((each.decode_s for each in passes), batch_size, batch_size * flops),
        weights_gib=weights / 2**30,
        cache_gib=passes[-1].cache_bytes / 2**30,
        peak_gib=max(peaks) / 2**30 if peaks else None,
    )
