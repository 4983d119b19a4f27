"""
Draws text from a model, token by token, many texts at a time.

References: Liu et al., 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from ..distributed import fingerprint
from ..modeling.caches import cache_argument, held_bytes
from ..modeling.contexts import computing_on, evaluating, fastest_dtype
from ..progress import Progress
from .beginnings import NO_WORDS, Beginnings


BLOCK = 64
"""Texts that are written at a time: a token takes about as long for many texts as for one."""

CACHE_BYTES = 2**31
"""Most bytes that the caches of the texts take. Of a large model fewer texts are written at a time."""

GREEDY_TOKENS = 4
"""Number of tokens after a random one that are the most probable ones: a random start becomes text (LLM-QAT)."""

SAMPLING = {"temperature": 1.0, "top_p": 1.0}
"""How tokens are drawn from the model's distribution: here from all of it, as it is."""


def write_blocks(
    model: PreTrainedModel,
    start: int,
    stop: int,
    *,
    length: int,
    seed: int = 0,
    beginnings: Beginnings = NO_WORDS,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """
    Writes some of the texts that belong to a seed. A text depends on its number and the seed, not on how many are
    asked for, up to the rounding of sums.

    A text begins as `beginnings` says. After a random token, `GREEDY_TOKENS` most probable ones follow. All other
    tokens are drawn from the model's distribution, see `SAMPLING`. An end-of-text token does not end a text: another
    one begins behind it.

    Once a speaker ends, with the first token of what stands between the turns, the rest of it follows: models have
    often learned the assistant's words alone, and would not begin its turn themselves. Outside of conversations, the
    assistant is taken to speak.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        start (`int`), stop (`int`): numbers of the first text and of that behind the last.
        length (`int`): tokens per text.
        seed (`int`, defaults to 0): seeds the draws. The global random number generators are left as they are.
        beginnings ([`Beginnings`], *optional*): what texts begin with. By default a random token.
        device (`torch.device` or `str`, *optional*): where the model computes. By default where it is.

    Yields:
        `torch.Tensor`: `(N, length)` token ids, int64 on the CPU, with N up to `BLOCK`.
    """
    device = torch.device(device or model.device)
    bar = Progress((stop - start) * length, "Writing text", "token")
    # Slicing needs twice the model's memory, too, so there is room for a smaller copy.
    with evaluating(model), computing_on(model, device, fastest_dtype(model.dtype, device)), bar:
        rows = max(1, CACHE_BYTES // text_bytes(model, length))
        while start < stop:
            end = min(stop, start - start % BLOCK + BLOCK, start + rows)
            yield _write_block(model, start, end, length, seed, beginnings, bar)
            start = end


def new_cache(model: PreTrainedModel, length: int) -> dict[str, StaticCache]:
    """Returns an empty cache, for so many tokens, under the name that the model's forward has for it."""
    return {cache_argument(model): StaticCache(config=model.config, max_cache_len=length)}


@torch.no_grad()
def text_bytes(model: PreTrainedModel, length: int) -> int:
    """Measures the bytes that the cache of a text takes. It is allocated for the first token."""
    cache = new_cache(model, length)
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True, **cache)
    return held_bytes(*cache.values())


@torch.no_grad()
def _write_block(model, start, stop, length, seed, beginnings, bar):
    block, rows, device = start // BLOCK, slice(start % BLOCK, start % BLOCK + stop - start), model.device
    generator = torch.Generator().manual_seed(int(fingerprint([seed, block])[:16], 16))
    # All of the block is drawn, so that a row does not depend on the others.
    random = torch.randint(model.config.vocab_size, (BLOCK,), generator=generator, device="cpu")[rows].tolist()
    noise = torch.rand(BLOCK, length, generator=generator, device="cpu")[rows].to(device)

    starts = [beginnings.of_text(number) for number in range(start, stop)]
    begun = [[*tokens, *[token] * is_random] for (tokens, is_random, _), token in zip(starts, random, strict=True)]
    ids = torch.tensor([[*tokens, *[0] * length][:length] for tokens in begun], device=device)
    given = torch.tensor([*map(len, begun)], device=device)
    greedy = given + GREEDY_TOKENS * torch.tensor([is_random for _, is_random, _ in starts], device=device)
    speaker = torch.tensor([int(not talks) for _, _, talks in starts], device=device)
    between = [torch.tensor(part, device=device) for part in beginnings.turns[1:]]
    cache = new_cache(model, length)
    for position in range(1, length):
        before = ids[:, position - 1, None]
        logits = model(input_ids=before, use_cache=True, **cache).logits[:, -1].float()
        chosen = torch.where(position < greedy, logits.argmax(-1), _draw(logits, noise[:, position]))
        free = position >= given
        ids[:, position] = torch.where(free, chosen, ids[:, position])
        if between:
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
