"""Turns texts or tokens into fixed token batches, for calibration and for evaluation."""

import itertools
import os
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from .tables import holds_text, list_items
from .texts import load_texts


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class TokenBatches:
    """
    Token batches, the name of their source, and the kind of text in each. Iterating yields the batches.

    Args:
        batches (`list[dict[str, torch.Tensor]]`):
            Each has `input_ids` `(B, T)`, int64 on the CPU, and `attention_mask` of that shape where one was given;
            for models of images and text what else their processors return.
        source (`str`):
            The data that was used: a name of `DATASETS`, file names, `"texts"`, `"tokens"`, or `"self"` for text of
            the model. Names of a mixture are joined by commas.
        groups (`tuple[int, ...]`, *optional*):
            For every batch the number of the kind of text that it holds, from 0. By default all are of one kind.

    Raises:
        ValueError: there are not as many groups as batches.
    """

    batches: list[dict[str, torch.Tensor]]
    source: str
    groups: tuple[int, ...] | None = None

    def __post_init__(self):
        groups = (0,) * len(self.batches) if self.groups is None else tuple(self.groups)
        if len(groups) != len(self.batches):
            raise ValueError(f"{len(groups)} groups for {len(self.batches)} batches; give the group of every batch.")
        object.__setattr__(self, "groups", groups)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.batches)

    @property
    def ntokens(self) -> int:
        """The number of unmasked tokens."""
        return sum(self.tokens_by_group)

    @property
    def tokens_by_group(self) -> list[int]:
        """The number of unmasked tokens of each group."""
        counts = [0] * (1 + max(self.groups, default=-1))
        for count, group in zip(self.counts, self.groups, strict=True):
            counts[group] += count
        return counts

    @property
    def counts(self) -> list[int]:
        """The number of unmasked tokens of each batch."""
        masks = (batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in self.batches)
        return [int(mask.count_nonzero()) for mask in masks]


def load_batches(
    dataset: Any,
    tokenizer: Any = None,
    *,
    split: str = "train",
    text_column: str | None = None,
    nsamples: int = 128,
    seqlen: int = 2048,
    batch_size: int = 8,
    seed: int | None = 0,
    vocab_size: int | None = None,
    held_out: int = 0,
    begin: Sequence[int] = (),
    also: Collection[str] = (),
) -> TokenBatches:
    """
    Loads a dataset as fixed token batches. Joins its documents by blank lines, tokenises them once without special
    tokens, and cuts the tokens into consecutive chunks. Neither reads nor changes the global random number generators.

    Args:
        dataset:
            Text: a name of `DATASETS` or `"auto"`, a path or list of paths, texts, or rows, see [`load_texts`]. Or
            batches that are tokenised already, which are used as they are: mappings with `input_ids` `(B, T)` or
            `(T,)` and perhaps `attention_mask` of the same shape. Keys that `also` does not name are dropped, and so
            are batches without tokens, with a warning.
        tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*):
            The object, its name or its path. Text needs one.
        split (`str`, defaults to `"train"`):
            `"train"` or `"test"`. Named datasets only.
        text_column (`str`, *optional*):
            Column that holds the text. By default the dataset's own; of a file, "text" or the only column of strings.
        nsamples (`int`, defaults to 128):
            Number of chunks. A text with too few tokens makes fewer chunks, or a single short one, with a warning.
        seqlen (`int`, defaults to 2048):
            Tokens per chunk. Tokens at the end of the text that fill no chunk are dropped.
        batch_size (`int`, defaults to 8):
            Chunks per batch; the last batch may be smaller.
        seed (`int`, *optional*, defaults to 0):
            Draws the chunks, and the documents where there are many more than needed. None takes the first ones.
        vocab_size (`int`, *optional*):
            Number of embeddings of the model. All token ids must be below it.
        held_out (`int`, defaults to 0):
            With a number, at most so many of the chunks that the same call without it does not return. Where it
            returns all, there is none. Text only.
        begin (`Sequence[int]`, *optional*):
            Tokens in front of each chunk, which count among its `seqlen`: see [`begin_tokens`]. Text only.
        also (`Collection[str]`, *optional*):
            Further keys of batches that are tokenised already, such as `pixel_values`: the tensors of processors.

    Returns:
        `TokenBatches`: the same ones for the same arguments.

    Raises:
        ConnectionError: a named dataset is neither on the Hub nor in its cache.
        FileNotFoundError: a path is not a file.
        ValueError: the name, split, file or column cannot be used, see [`load_texts`]; there is no tokenizer; a size
            is below 1; there are no tokens; tokens are malformed or outside the vocabulary.

    Examples:
        >>> from transformers import AutoTokenizer
        >>> tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
        >>> batches = load_batches("python-docs", tokenizer, nsamples=12, seqlen=64)  # doctest: +SKIP
        >>> [tuple(batch["input_ids"].shape) for batch in batches]  # doctest: +SKIP
        [(8, 64), (4, 64)]
        >>> batches = load_batches([{"input_ids": [[5, 6, 7], [8, 9, 10]]}, {"input_ids": [11, 12]}])
        >>> [tuple(batch["input_ids"].shape) for batch in batches], batches.source, batches.ntokens
        ([(2, 3), (1, 2)], 'tokens', 8)
    """
    for name, value in {"nsamples": nsamples, "seqlen": seqlen, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    items = list_items(dataset)
    if not items:
        raise ValueError("The dataset is empty. Give a name, paths, texts or tokenised batches.")
    if holds_text(items):
        tokenizer = find_tokenizer(tokenizer)
        named = dataset if isinstance(dataset, str) else items
        documents, source = load_texts(named, split=split, text_column=text_column)
        # A token has about 4 characters, so these are about four times as many tokens as needed.
        documents = _sample_documents(documents, 16 * nsamples * seqlen, seed)
        room = max(1, seqlen - len(begin))
        chunks = _cut_chunks("\n\n".join(documents), tokenizer, nsamples, room, seed, source, held_out)
        chunks = begun(chunks, begin)
        batches = [{"input_ids": input_ids} for input_ids in chunks.split(batch_size) if len(input_ids)]
        groups = None
    else:
        source, groups = "tokens", [0] * len(items)
        if isinstance(dataset, TokenBatches):
            source, groups = dataset.source, dataset.groups
        kept = [index for index, item in enumerate(items) if not _is_blank(item)]
        if 0 < len(kept) < len(items):
            logger.warning(f"{len(items) - len(kept)} of {len(items)} tokenised batches have no tokens: left out.")
            items, groups = [items[index] for index in kept], [groups[index] for index in kept]
        batches = [_token_batch(item, also) for item in items]
    if vocab_size is not None and batches:
        ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"Token ids from {ids.min()} to {ids.max()} are not all in [0, {vocab_size}), the model's vocabulary. "
                "The tokenizer probably does not belong to this model: load both from the same checkpoint."
            )
    return TokenBatches(batches, source, groups)


def begun(chunks: torch.Tensor, begin: Sequence[int]) -> torch.Tensor:
    """Returns chunks `(N, T)` of token ids behind the tokens that each begins with, `(N, len(begin) + T)`."""
    front = torch.tensor([*begin], dtype=chunks.dtype).expand(len(chunks), len(begin))
    return torch.cat([front, chunks], 1)


def limit_to_positions(seqlen: int, model_config) -> int:
    """Returns `seqlen`, or the number of positions of a model where that is less."""
    return min(seqlen, getattr(model_config, "max_position_embeddings", None) or seqlen)


def find_tokenizer(tokenizer: Any) -> Any:
    """
    Loads a tokenizer by its name or path.

    Args:
        tokenizer (`str`, `os.PathLike` or tokenizer): name, path or object.

    Returns:
        `PreTrainedTokenizerBase`: an object is returned as it is.

    Raises:
        ValueError: no name is given, or no tokenizer is there.
    """
    remedy = "pass tokenizer= (an object, a name or a path), or calibrate on tokenised batches"
    if not tokenizer:
        raise ValueError(f"The calibration data is text and no tokenizer is known: {remedy}.")
    if not isinstance(tokenizer, str | os.PathLike):
        return tokenizer
    try:
        return AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(f"No tokenizer could be loaded from {str(tokenizer)!r}: {remedy}.") from error


def _sample_documents(documents: list[str], characters: int, seed: int | None) -> list[str]:
    """Draws documents until they have that many characters, or takes the first ones; keeps their order."""
    indices = range(len(documents))
    order = indices if seed is None else random.Random(seed).sample(indices, len(documents))
    # Entry i counts the characters before document i.
    before = itertools.accumulate((len(documents[index]) for index in order), initial=0)
    drawn = [index for index, count in zip(order, before, strict=False) if count < characters]
    return [documents[index] for index in sorted(drawn)]


def _cut_chunks(
    text: str, tokenizer: Any, nsamples: int, seqlen: int, seed: int | None, source: str, held_out: int
) -> torch.Tensor:
    """
    Tokenises a text and cuts it into at most `nsamples` chunks, `(N, seqlen)`, or `(1, T)` of a short text; or returns
    `held_out` of those that are left.
    """
    # The text may be longer than the model's context, of which tokenizers warn unless verbose=False.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"No tokens to use in dataset {source!r}: its text has {len(ids)}, and 2 are needed.")
    count = max(len(ids) // seqlen, 1)
    if len(ids) < nsamples * seqlen and not held_out:
        used = f"{count} of {min(len(ids), seqlen)}"
        logger.warning(f"Dataset {source!r} is too short for {nsamples} chunks of {seqlen} tokens: using {used}.")
    chunks, drawn = (
        torch.tensor(ids[: count * seqlen], device="cpu").view(count, -1),
        list(range(min(count, nsamples))),
    )
    if seed is not None and count > nsamples:
        drawn = sorted(random.Random(seed).sample(range(count), nsamples))
    return chunks[[index for index in range(count) if index not in {*drawn}][:held_out] if held_out else drawn]


def _is_blank(item: Any) -> bool:
    """Tells whether a tokenised batch has no tokens, as a blank line has none, or nothing but padding."""
    if not isinstance(item, Mapping):
        return False
    try:
        tensors = [torch.as_tensor(item[key]) for key in ("input_ids", "attention_mask") if item.get(key) is not None]
    except (TypeError, ValueError):
        return False  # It is ragged, which is another matter.
    return any(tensor.numel() == 0 for tensor in tensors) or not all(tensor.any() for tensor in tensors[1:])


def _token_batch(item: Any, also: Collection[str]) -> dict[str, torch.Tensor]:
    """Checks a tokenised batch, and turns its values into tensors."""
    if not isinstance(item, Mapping) or item.get("input_ids") is None:
        got = list(item) if isinstance(item, Mapping) else type(item).__name__
        raise ValueError(f"Each tokenised batch must be a mapping with 'input_ids', got {got}. Give texts as strings.")
    names = [name for name in ("input_ids", "attention_mask") if item.get(name) is not None]
    batch = {name: _integer_matrix(item[name], name) for name in names}
    shape, mask = tuple(batch["input_ids"].shape), batch.get("attention_mask")
    if mask is not None and (mask.shape != shape or not mask.any()):
        got = f"shape {tuple(mask.shape)}, {mask.count_nonzero()} nonzero"
        raise ValueError(f"attention_mask must have the shape of input_ids, {shape}, and not be all zero; got {got}.")
    return batch | {key: torch.as_tensor(item[key]) for key in also if item.get(key) is not None}


def _integer_matrix(values: Any, name: str) -> torch.Tensor:
    """Turns `values` into a tensor `(B, T)`, int64 on the CPU."""
    try:
        matrix = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be integers of shape (batch, tokens), got a ragged list: {error}.") from error
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.numel() == 0 or matrix.is_floating_point():
        got = f"shape {tuple(matrix.shape)} of {matrix.dtype}"
        raise ValueError(f"{name} must be integers of shape (batch, tokens), got {got}.")
    matrix = matrix.to(torch.int64)
    return matrix.clone() if matrix.is_inference() else matrix  # Inference tensors take no part in gradients.
