"""
Draws text from a model: of every kind that it knows, in the shares in which it knows them.

References: Liu et al., 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", section 3.1.
"""

from __future__ import annotations

import re
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

SENTINELS = ("slicegptwordsoftheuser", "slicegptwordsofthemodel", "slicegptwordsafterwards")
"""Stand for what is said in turns where a chat template is rendered, which are to be found again in its result."""


def write_blocks(
    model: PreTrainedModel,
    start: int,
    stop: int,
    *,
    length: int,
    seed: int = 0,
    begin: Sequence[int] = (),
    turns: Sequence[Sequence[int]] = (),
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """
    Writes some of the sequences that belong to a seed. A sequence depends on its number and the
    seed, not on how many are asked for, up to the rounding of sums.

    Even sequences begin with a random token, after which `GREEDY_TOKENS` most probable ones follow. Odd ones begin as
    conversations do, if there are `turns`. `begin` stands in front of either. All other tokens are drawn from the
    model's distribution, see `SAMPLING`. An end-of-text token does not end a sequence: another text begins behind it.

    Once a speaker ends, with the first token of what stands between the turns, the rest of it follows: models have
    often learned the assistant's words alone, and would not begin its turn themselves. What follows a random token are
    the assistant's.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        start (`int`), stop (`int`): numbers of the first sequence and of that behind the last.
        length (`int`): tokens per sequence.
        seed (`int`, defaults to 0): seeds the draws. The global random number generators are left as they are.
        begin (`Sequence[int]`, *optional*): what any text of the model begins with, see [`begin_tokens`].
        turns (`Sequence[Sequence[int]]`, *optional*): what a conversation has around its words, see [`chat_turns`].
        device (`torch.device` or `str`, *optional*): where the model computes. By default where it is.

    Yields:
        `torch.Tensor`: `(N, length)` token ids, int64 on the CPU, with N up to `BLOCK`.
    """
    device = torch.device(device or model.device)
    if turns:
        turns = [begun_once(turns[0], begin), *turns[1:]]
    bar = Progress((stop - start) * length, "Writing text", "token")
    # Slicing needs twice the model's memory, too, so there is room for a copy in bfloat16.
    with evaluating(model), computing_on(model, device, fastest_dtype(model.dtype, device)), bar:
        rows = max(1, CACHE_BYTES // sequence_bytes(model, length))
        while start < stop:
            end = min(stop, start - start % BLOCK + BLOCK, start + rows)
            yield _write_block(model, start, end, length, seed, begin, turns, bar)
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
def _write_block(model, start, stop, length, seed, begin, turns, bar):
    block, rows = start // BLOCK, slice(start % BLOCK, start % BLOCK + stop - start)
    generator = torch.Generator().manual_seed(int(fingerprint([seed, block])[:16], 16))
    # All of the block is drawn, so that a row does not depend on the others.
    first = torch.randint(model.config.vocab_size, (BLOCK,), generator=generator, device="cpu")[rows].to(model.device)
    noise = torch.rand(BLOCK, length, generator=generator, device="cpu")[rows].to(model.device)
    begin, *turns = (torch.tensor([*part], dtype=torch.long, device=model.device) for part in (begin, *turns))
    talks = (torch.arange(start, stop, device=model.device) % 2 == 1) & bool(turns)

    ids = first[:, None].repeat(1, length)
    ids[:, : len(begin)] = begin[:length]
    given = torch.full_like(first, len(begin) + 1)
    if turns:
        opening, *between = turns
        ids[talks, : len(opening)] = opening[:length]
        given[talks] = len(opening)
    speaker = (~talks).long()
    cache = new_cache(model, length)
    for position in range(1, length):
        before = ids[:, position - 1, None]
        logits = model(input_ids=before, use_cache=True, **cache).logits[:, -1].float()
        chosen = _draw(logits, noise[:, position])
        if position <= len(begin) + GREEDY_TOKENS:
            chosen = torch.where(talks, chosen, logits.argmax(-1))
        free = position >= given
        ids[:, position] = torch.where(free, chosen, ids[:, position])
        if turns:
            ends = [free & (speaker == who) & (chosen == part[0]) for who, part in enumerate(between)]
            for ending, part in zip(ends, between, strict=True):
                here = slice(position, position + len(part))
                ids[:, here] = torch.where(ending[:, None], part[: length - position], ids[:, here])
                given = torch.where(ending, position + len(part), given)
            speaker = (speaker + sum(ends)) % 2
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


def chat_turns(tokenizer: Any) -> list[list[int]]:
    """
    Returns what a conversation has around its words, as the tokenizer's chat template has it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the model.

    Returns:
        `list[list[int]]`: token ids up to the user's first words; from there to the model's words; from those to the
        user's next words. The first of these alone where words end in tokens that may be words; none where there is no
        template, or it refuses or rewrites what is said.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": words} for role, words in zip(roles, SENTINELS, strict=True)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # A template is a program: it may raise anything.
        return []
    parts = re.split("|".join(SENTINELS), text)[: len(SENTINELS)]
    turns = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    if re.findall("|".join(SENTINELS), text) != [*SENTINELS] or not all(turns):
        return []
    return turns if all(turn[0] in tokenizer.added_tokens_decoder for turn in turns[1:]) else turns[:1]


def begun_once(ids: Sequence[int], begin: Sequence[int]) -> list[int]:
    """
    Returns token ids behind those that any text of the model begins with, which a chat template may have put there.

    Examples:
        >>> begun_once([7, 8], [1]), begun_once([1, 7, 8], [1])
        ([1, 7, 8], [1, 7, 8])
    """
    return [*ids] if [*ids[: len(begin)]] == [*begin] else [*begin, *ids]
