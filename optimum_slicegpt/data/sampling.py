"""
Draws text from a model: of every kind that it knows, in the shares in which it knows them.

References: Liu et al., 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from ..distributed import fingerprint
from ..modeling.caches import cache_argument, held_bytes
from ..modeling.contexts import computing_on, evaluating, fastest_dtype
from ..progress import Progress


BLOCK = 64
"""Sequences that are written at a time: a token takes about as long for many sequences as for one."""

CACHE_BYTES = 2**31
"""Most bytes that the caches of the sequences take. Of a large model fewer sequences are written at a time."""

GREEDY_TOKENS = 4
"""Number of tokens after a random one that are the most probable ones: a random start becomes text (LLM-QAT)."""

SAMPLING = {"temperature": 1.0, "top_p": 1.0}
"""How tokens are drawn from the model's distribution: here from all of it, as it is."""

SENTINEL = "slicegptwordsoftheuser"
"""Stands for the user's words where a chat template is rendered, which are to be found again in its result."""


def write_blocks(
    model: PreTrainedModel,
    start: int,
    stop: int,
    *,
    length: int,
    seed: int = 0,
    begin: Sequence[int] = (),
    opening: Sequence[int] = (),
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """
    Writes some of the sequences that belong to a seed. A sequence depends on its number and the
    seed, not on how many are asked for, up to the rounding of sums.

    Even sequences begin with a random token, after which `GREEDY_TOKENS` most probable ones follow. Odd ones begin
    with `opening`, if there is one. `begin` stands in front of either. All others are drawn from the model's
    distribution, see `SAMPLING`. An end-of-text token does not end a sequence: another text begins behind it.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        start (`int`), stop (`int`): numbers of the first sequence and of that behind the last.
        length (`int`): tokens per sequence.
        seed (`int`, defaults to 0): seeds the draws. The global random number generators are left as they are.
        begin (`Sequence[int]`, *optional*): what any text of the model begins with, see [`begin_tokens`].
        opening (`Sequence[int]`, *optional*): what every other sequence begins with, see [`chat_opening`].
        device (`torch.device` or `str`, *optional*): where the model computes. By default where it is.

    Yields:
        `torch.Tensor`: `(N, length)` token ids, int64 on the CPU, with N up to `BLOCK`.
    """
    device = torch.device(device or model.device)
    if opening:
        opening = begun_once(opening, begin)
    bar = Progress((stop - start) * length, "Writing text", "token")
    # Slicing needs twice the model's memory, too, so there is room for a copy in bfloat16.
    with evaluating(model), computing_on(model, device, fastest_dtype(model.dtype, device)), bar:
        rows = max(1, CACHE_BYTES // sequence_bytes(model, length))
        while start < stop:
            end = min(stop, start - start % BLOCK + BLOCK, start + rows)
            yield _write_block(model, start, end, length, seed, begin, opening, bar)
            start = end


def new_cache(model: PreTrainedModel, length: int) -> dict[str, StaticCache]:
    """Returns an empty cache, for so many tokens, under the name that the model's forward has for it."""
    return {cache_argument(model): StaticCache(config=model.config, max_cache_len=length)}


@torch.no_grad()
def sequence_bytes(model: PreTrainedModel, length: int) -> int:
    """Measures the bytes that the cache of a sequence takes. It is allocated for the first token."""
    cache = new_cache(model, length)
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True, **cache)
    return held_bytes(*cache.values())


@torch.no_grad()
def _write_block(model, start, stop, length, seed, begin, opening, bar):
    block, rows = start // BLOCK, slice(start % BLOCK, start % BLOCK + stop - start)
    generator = torch.Generator().manual_seed(int(fingerprint([seed, block])[:16], 16))
    # All of the block is drawn, so that a row does not depend on the others.
    first = torch.randint(model.config.vocab_size, (BLOCK,), generator=generator, device="cpu")[rows].to(model.device)
    noise = torch.rand(BLOCK, length, generator=generator, device="cpu")[rows].to(model.device)
    opening = torch.tensor(list(opening[:length]), dtype=torch.long, device=model.device)
    opened = torch.arange(start, stop, device=model.device) % 2 == 1
    if not len(opening):
        opened[:] = False

    ids = first[:, None].repeat(1, length)
    ids[:, : len(begin)] = torch.tensor([*begin], dtype=torch.long, device=model.device)[:length]
    ids[opened, : len(opening)] = opening
    given = torch.where(opened, len(opening), len(begin) + 1)
    cache = new_cache(model, length)
    for position in range(1, length):
        before = ids[:, position - 1, None]
        logits = model(input_ids=before, use_cache=True, **cache).logits[:, -1].float()
        chosen = _draw(logits, noise[:, position])
        if position <= len(begin) + GREEDY_TOKENS:
            chosen = torch.where(opened, chosen, logits.argmax(-1))
        ids[:, position] = torch.where(position < given, ids[:, position], chosen)
        bar.update(len(ids))
    bar.update(len(ids))
    return ids.cpu()


def _draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Draws a token of each row of logits `(N, V)`: the one at which the sum of probabilities exceeds its noise."""
    logits = logits / SAMPLING["temperature"]
    order = None
    if SAMPLING["top_p"] < 1:
        logits, order = logits.sort(descending=True)
    sums = logits.softmax(-1).cumsum(-1)
    reached = noise[:, None] * min(SAMPLING["top_p"], 1) * sums[:, -1:]
    drawn = torch.searchsorted(sums, reached, right=True).clamp(max=logits.shape[-1] - 1)
    return (drawn if order is None else order.gather(1, drawn))[:, 0]


def chat_opening(tokenizer: Any) -> list[int]:
    """
    Returns how a conversation begins, up to where the user's words stand, as the tokenizer's chat template has it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the model.

    Returns:
        `list[int]`: token ids; none where there is no template, or it refuses or rewrites the user's words.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": SENTINEL}], tokenize=False)
    except Exception:  # A template is a program: it may raise anything.
        return []
    before, found, _ = text.partition(SENTINEL)
    return tokenizer(before, add_special_tokens=False)["input_ids"] if found and before else []


def begun_once(ids: Sequence[int], begin: Sequence[int]) -> list[int]:
    """
    Returns token ids behind those that any text of the model begins with, which a chat template may have put there.

    Examples:
        >>> begun_once([7, 8], [1]), begun_once([1, 7, 8], [1])
        ([1, 7, 8], [1, 7, 8])
    """
    return [*ids] if [*ids[: len(begin)]] == [*begin] else [*begin, *ids]
