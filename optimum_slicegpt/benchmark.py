"""Speed and memory of models that generate, side by side: in one process, and taking turns, so that noise hits all."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.utils import logging

from .assembly import evaluating
from .modeling.families import family_of
from .sizes import flops_per_token
from .speed import Phase, Ratio, Speed, Speedup


@dataclass(frozen=True)
class Settings:
    """
    What is measured.

    Args:
        batch_sizes (`tuple[int, ...]`, defaults to `(1,)`): Numbers of sequences, one after another.
        seqlen (`int`, defaults to 512): Tokens in each prompt.
        new_tokens (`int`, defaults to 32): Tokens that each sequence grows by.
        warmup (`int`, defaults to 2): Passes before those that count.
        repeats (`int`, defaults to 7): Passes that count.
        compile (`bool`, defaults to `False`):
            Whether models go through `torch.compile`, with a static cache. It compiles in the first pass of each batch
            size.
        seed (`int`, defaults to 0): Of the prompts' token ids, which are random.

    Raises:
        ValueError: a number out of its range.
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
        Refuses what a model cannot do.

        Raises:
            ValueError: it has positions for fewer tokens, or its family, which tells its FLOPs, is not in the table.
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
        settings ([`Settings`]): what was measured.
        dtype (`str`): in which models computed.
        device (`str`): where.
        threads (`int`): of the CPU.
        speeds (`list[Speed]`): of every model at every batch size.
        speedups (`list[Speedup]`): of every model but the first.
    """

    settings: Settings
    dtype: str
    device: str
    threads: int
    speeds: list[Speed]
    speedups: list[Speedup]


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass, and bytes at its end."""

    prefill_s: float
    decode_s: float
    cache_bytes: int
    peak_bytes: int | None


def benchmark(models: Mapping[str, PreTrainedModel], settings: Settings | None = None) -> Benchmark:
    """
    Measures how fast models read prompts and go on from them, greedily. They take turns, pass by pass, and every other
    time in reverse.

    Args:
        models (`Mapping[str, PreTrainedModel]`):
            Causal language models by name, on one device and in one dtype. The others are compared with the first.
        settings ([`Settings`], *optional*): defaults to `Settings()`.

    Returns:
        [`Benchmark`]: `dataclasses.asdict` makes it a dictionary that JSON can hold.

    Raises:
        ValueError: what [`Settings.check`] refuses; models on different devices or in different dtypes.
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
    flops = {name: flops_per_token(model) for name, model in models.items()}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        passes = run_passes(models, settings)
    speeds = {
        (name, batch_size): speed(name, models[name], flops[name], batch_size, settings.seqlen, done)
        for (name, batch_size), done in passes.items()
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
                model=own.model,
                baseline=first,
                batch_size=own.batch_size,
                prefill=Ratio.of(own.prefill, other.prefill),
                decode=Ratio.of(own.decode, other.decode),
            )
            for own, other in pairs
        ],
    )


def run_passes(models: Mapping[str, PreTrainedModel], settings: Settings) -> dict[tuple[str, int], list[Pass]]:
    """All passes that count, by the model's name and the batch size."""
    passes = {(name, batch_size): [] for batch_size in settings.batch_sizes for name in models}
    forwards = {name: torch.compile(model) if settings.compile else model for name, model in models.items()}
    vocab_size = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(settings.seed)
    total = len(passes) * (settings.warmup + settings.repeats)
    with logging.tqdm(total=total, desc="Benchmark", unit="pass", disable=None) as progress:
        for batch_size in settings.batch_sizes:
            ids = torch.randint(vocab_size, (batch_size, settings.seqlen), generator=generator)
            for turn in range(-settings.warmup, settings.repeats):
                for name in list(models)[:: -1 if turn % 2 else 1]:
                    done = one_pass(models[name], forwards[name], ids, settings)
                    if turn >= 0:
                        passes[name, batch_size].append(done)
                    progress.update()
    return passes


@torch.inference_mode()
def one_pass(model: PreTrainedModel, forward: Callable, ids: Tensor, settings: Settings) -> Pass:
    """
    Reads prompts, then makes tokens one by one.

    Args:
        model (`PreTrainedModel`): whose passes are measured.
        forward (`Callable`): the model, or its compiled form.
        ids (`torch.Tensor` of shape `(B, T)`): the prompts.
        settings ([`Settings`]): gives `new_tokens` and `compile`.
    """
    device, cuda = model.device, model.device.type == "cuda"
    cache, ids = None, ids.to(device)
    if settings.compile:  # whose shapes must not grow
        cache = StaticCache(config=model.config, max_cache_len=settings.seqlen + settings.new_tokens)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)

    times = [now(device)]
    for count in (1, settings.new_tokens):
        for _ in range(count):
            output = forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        times.append(now(device))
    start, read, end = times
    return Pass(
        prefill_s=read - start,
        decode_s=(end - read) / settings.new_tokens,
        cache_bytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
        peak_bytes=torch.cuda.max_memory_allocated(device) - before if cuda else None,
    )


def now(device: torch.device) -> float:
    """Seconds, once everything that was asked of a device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def speed(name: str, model: PreTrainedModel, flops: int, batch_size: int, seqlen: int, passes: list[Pass]) -> Speed:
    """`flops` are those of a token, head included."""
    head = 2 * model.get_output_embeddings().weight.numel()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    peaks = [weights + each.peak_bytes for each in passes if each.peak_bytes is not None]
    prompts = batch_size * (seqlen * (flops - head) + head)
    return Speed(
        model=name,
        batch_size=batch_size,
        prefill=Phase.of((each.prefill_s for each in passes), batch_size * seqlen, prompts),
        decode=Phase.of((each.decode_s for each in passes), batch_size, batch_size * flops),
        weights_gib=weights / 2**30,
        cache_gib=passes[-1].cache_bytes / 2**30,
        peak_gib=max(peaks) / 2**30 if peaks else None,
    )
