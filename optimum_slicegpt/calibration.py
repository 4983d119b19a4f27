"""Texts or tokens -> fixed token batches, for calibration and for evaluation."""

import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from .texts import NAMES, load_texts


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class TokenBatches:
    """
    Token batches, and where they come from. Iterating gives the batches.

    Args:
        batches (`list[dict[str, torch.Tensor]]`):
            Each has `input_ids` `(B, T)`, int64 on the CPU, and `attention_mask` of that shape where one was given.
        source (`str`):
            What was really used: a name of `DATASETS`, file names, `"texts"` or `"tokens"`.
    """

    batches: list[dict[str, torch.Tensor]]
    source: str

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self.batches)

    @property
    def ntokens(self) -> int:
        """Number of unmasked tokens."""
        masks = (batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in self.batches)
        return sum(int(mask.sum()) for mask in masks)


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
) -> TokenBatches:
    """
    Fixed token batches of a dataset: documents joined by a blank line, tokenised once without special tokens, and cut
    into consecutive chunks. The global random number generators are neither read nor changed.

    Args:
        dataset:
            What [`load_texts`] takes; or batches that are tokenised already, which are used as they are: mappings with
            `input_ids` `(B, T)` or `(T,)` and perhaps `attention_mask` of the same shape. Other keys are dropped.
        tokenizer (`PreTrainedTokenizerBase` or `str`, *optional*):
            Needed for text: the object, its name or its path.
        split (`str`, defaults to `"train"`):
            `"train"` or `"test"`. Named datasets only.
        text_column (`str`, *optional*):
            Column that holds the text. By default the dataset's own; of a file, "text" or the only column of strings.
        nsamples (`int`, defaults to 128):
            Number of chunks. A text with fewer tokens gives fewer chunks, or a single short one, with a warning.
        seqlen (`int`, defaults to 2048):
            Tokens per chunk. The tail of the text is dropped.
        batch_size (`int`, defaults to 8):
            Chunks per batch; the last batch may be smaller.
        seed (`int`, *optional*, defaults to 0):
            Picks the chunks, and the documents where there are many more than needed. None takes the first ones.
        vocab_size (`int`, *optional*):
            Number of embeddings of the model; token ids are checked against it.

    Returns:
        `TokenBatches`: the same ones for the same arguments.

    Raises:
        ConnectionError: as in [`load_texts`].
        FileNotFoundError: as in [`load_texts`].
        ValueError: what `load_texts` refuses; no tokenizer; sizes below 1; nothing to use; malformed tokens.
    """
    for name, value in {"nsamples": nsamples, "seqlen": seqlen, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if dataset is None:
        dataset = ()
    items = [dataset] if isinstance(dataset, str | os.PathLike | Mapping) else list(dataset)
    if not items:
        raise ValueError("The dataset is empty. Give a name, paths, texts or tokenised batches.")
    if all(isinstance(item, str | os.PathLike) for item in items):
        tokenizer = find_tokenizer(tokenizer)
        named = dataset if isinstance(dataset, str) else items
        documents, source = load_texts(named, split=split, text_column=text_column)
        documents = _enough(documents, 16 * nsamples * seqlen, seed)  # a token has about 4 characters
        chunks = _chunks("\n\n".join(documents), tokenizer, nsamples, seqlen, seed, source)
        batches = [{"input_ids": input_ids} for input_ids in chunks.split(batch_size)]
    else:
        batches = [_token_batch(item) for item in items]
        source = dataset.source if isinstance(dataset, TokenBatches) else "tokens"
    if vocab_size is not None:
        ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"Token ids from {ids.min()} to {ids.max()} are not all in [0, {vocab_size}), the model's vocabulary. "
                "The tokenizer probably does not belong to this model: load both from the same checkpoint."
            )
    return TokenBatches(batches, source)


def sources_of(dataset: Any) -> list[Any]:
    """
    What a mixture is made of: the names of datasets, and the paths, of a list that holds at least one name. Anything
    else is one source.

    Raises:
        ValueError: something else in such a list.
    """
    if not isinstance(dataset, list | tuple) or not any(isinstance(item, str) and item in NAMES for item in dataset):
        return [dataset]
    strangers = {type(item).__name__ for item in dataset if not isinstance(item, str | os.PathLike)}
    if strangers:
        raise ValueError(
            f"A mixture of datasets has names and paths; got {' and '.join(sorted(strangers))} among them."
        )
    return list(dataset)


def is_own_text(source: Any) -> bool:
    """Whether the model is to write it."""
    return isinstance(source, str) and source == "self"


def mixed(parts: Sequence[TokenBatches], batch_size: int) -> TokenBatches:
    """The sequences of several datasets, one of each in turn, and `batch_size` of a length in a batch."""
    sequences = [[row for batch in part for row in batch["input_ids"]] for part in parts]
    in_turn = [row for turn in itertools.zip_longest(*sequences) for row in turn if row is not None]
    batches = [
        {"input_ids": batch}
        for _, alike in itertools.groupby(in_turn, len)
        for batch in torch.stack(list(alike)).split(batch_size)
    ]
    return TokenBatches(batches, ", ".join(part.source for part in parts))


def within_positions(seqlen: int, model_config) -> int:
    """`seqlen` tokens, or as many as a model has positions for."""
    return min(seqlen, getattr(model_config, "max_position_embeddings", None) or seqlen)


def find_tokenizer(tokenizer: Any) -> Any:
    """
    A tokenizer from its name or path; a tokenizer object is returned as it is.

    Raises:
        ValueError: nothing to look for, or nothing there.
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


def _enough(documents: list[str], characters: int, seed: int | None) -> list[str]:
    """A subset of that many characters, in the original order: random, or the first ones."""
    everything = range(len(documents))
    order = everything if seed is None else random.Random(seed).sample(everything, len(documents))
    taken = itertools.accumulate((len(documents[index]) for index in order), initial=0)  # before each
    kept = [index for index, before in zip(order, taken, strict=False) if before < characters]
    return [documents[index] for index in sorted(kept)]


def _chunks(text: str, tokenizer: Any, nsamples: int, seqlen: int, seed: int | None, source: str) -> torch.Tensor:
    # verbose=False: that the text is longer than the model's context is the point, not a warning
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"No tokens to use in dataset {source!r}: its text has {len(ids)}, and 2 are needed.")
    count = max(len(ids) // seqlen, 1)
    if len(ids) < nsamples * seqlen:
        got = f"{count} of {min(len(ids), seqlen)}"
        logger.warning(f"Dataset {source!r} is too short for {nsamples} chunks of {seqlen} tokens: using {got}.")
    chunks = torch.tensor(ids[: count * seqlen]).view(count, -1)
    if seed is None or count <= nsamples:
        return chunks[:nsamples]
    return chunks[sorted(random.Random(seed).sample(range(count), nsamples))]


def _token_batch(item: Any) -> dict[str, torch.Tensor]:
    if not isinstance(item, Mapping) or item.get("input_ids") is None:
        got = list(item) if isinstance(item, Mapping) else type(item).__name__
        raise ValueError(f"Each tokenised batch must be a mapping with 'input_ids', got {got}. Give texts as strings.")
    names = [name for name in ("input_ids", "attention_mask") if item.get(name) is not None]
    batch = {name: _integer_matrix(item[name], name) for name in names}
    shape, mask = tuple(batch["input_ids"].shape), batch.get("attention_mask")
    if mask is not None and (mask.shape != shape or not mask.any()):
        got = f"shape {tuple(mask.shape)}, {mask.count_nonzero()} nonzero"
        raise ValueError(f"attention_mask must have the shape of input_ids, {shape}, and not be all zero; got {got}.")
    return batch


def _integer_matrix(values: Any, name: str) -> torch.Tensor:
    try:
        matrix = torch.as_tensor(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be integers of shape (batch, tokens), got a ragged list: {error}.") from error
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.numel() == 0 or matrix.is_floating_point():
        got = f"shape {tuple(matrix.shape)} of {matrix.dtype}"
        raise ValueError(f"{name} must be integers of shape (batch, tokens), got {got}.")
    return matrix.to("cpu", torch.int64)
