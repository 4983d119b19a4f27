"""Builds the calibration batches of a run: from one dataset, a mixture of several, or text that the model writes."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration import SliceGPTConfig
from .batches import TokenBatches, limit_to_positions, load_batches
from .generated import generate_batches
from .texts import NAMES


logger = logging.get_logger(__name__)


def calibration_batches(model: PreTrainedModel, config: SliceGPTConfig, tokenizer: Any = None) -> TokenBatches:
    """
    Builds the batches that a run calibrates on. Warns if they hold fewer tokens than the stream has dimensions.

    Args:
        model (`PreTrainedModel`):
            A dense causal language model. Parameters on `meta` will do, unless the model writes the text.
        config ([`SliceGPTConfig`]): names the data (`dataset`) and its size (`nsamples`, `seqlen`, `batch_size`).
        tokenizer (`str` or tokenizer, *optional*):
            Turns text into tokens. By default `config.tokenizer`, then `model.name_or_path`.

    Returns:
        [`TokenBatches`]: the same ones for the same arguments. Each source of a mixture has as many sequences as any
        other, or one more.

    Raises:
        ConnectionError: a named dataset is neither on the Hub nor in its cache.
        FileNotFoundError: a path is not a file.
        ValueError: the dataset, the tokenizer or the tokens cannot be used, see [`load_batches`]; a mixture holds
            something that is no name or path, or has fewer sequences than sources.
    """
    sources = list_sources(config.dataset)
    if config.nsamples < len(sources):
        raise ValueError(f"nsamples={config.nsamples} is less than the number of datasets to mix, {len(sources)}.")
    tokenizer = tokenizer or config.tokenizer or model.name_or_path
    parts = {}
    # Text is generated last: that takes longest, and other sources may fail.
    for index, source in sorted(enumerate(sources), key=lambda pair: is_generated(pair[1])):
        nsamples = len(range(index, config.nsamples, len(sources)))
        parts[index] = _batches_of(source, nsamples, model, config, tokenizer)
    batches = parts[0] if len(parts) == 1 else mix_batches([parts[i] for i in sorted(parts)], config.batch_size)
    if batches.ntokens < model.config.hidden_size:
        logger.warning(
            f"{batches.ntokens} calibration tokens for a hidden size of {model.config.hidden_size}: fewer tokens "
            "than dimensions leave axes undetermined. Raise nsamples or seqlen."
        )
    return batches


def list_sources(dataset: Any) -> list[Any]:
    """
    Lists the sources of a dataset. A list that holds at least one name is a mixture, each of whose items is a source.
    Anything else is one source.

    Args:
        dataset: the setting of [`SliceGPTConfig`].

    Returns:
        `list`: names and paths of a mixture; otherwise `dataset` alone.

    Raises:
        ValueError: a mixture holds something that is no name or path.

    Examples:
        >>> list_sources(["wikitext2", "notes.txt"])
        ['wikitext2', 'notes.txt']
        >>> list_sources(["A text.", "Another one."])
        [['A text.', 'Another one.']]
    """
    if not isinstance(dataset, list | tuple) or not any(isinstance(item, str) and item in NAMES for item in dataset):
        return [dataset]
    strangers = {type(item).__name__ for item in dataset if not isinstance(item, str | os.PathLike)}
    if strangers:
        raise ValueError(
            f"A mixture of datasets has names and paths; got {' and '.join(sorted(strangers))} among them."
        )
    return list(dataset)


def is_generated(source: Any) -> bool:
    """Tells whether the model writes the text of a source."""
    return isinstance(source, str) and source == "self"


def mix_batches(parts: Sequence[TokenBatches], batch_size: int) -> TokenBatches:
    """
    Mixes the batches of several sources. Their sequences take turns, one of each source; when a source has no more,
    the others continue. Consecutive sequences of equal length share a batch.

    Args:
        parts (`Sequence[TokenBatches]`): batches of each source, without attention masks.
        batch_size (`int`): most sequences in a batch of the result.

    Returns:
        [`TokenBatches`]: `input_ids` `(B, T)` with `B <= batch_size`; its source names all sources.

    Examples:
        >>> long = TokenBatches([{"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}], "long")
        >>> short = TokenBatches([{"input_ids": torch.tensor([[7, 8]])}], "short")
        >>> mixture = mix_batches([long, short], batch_size=2)
        >>> mixture.source, [batch["input_ids"].tolist() for batch in mixture]
        ('long, short', [[[1, 2, 3]], [[7, 8]], [[4, 5, 6]]])
    """
    sequences = [[row for batch in part for row in batch["input_ids"]] for part in parts]
    in_turn = [row for turn in itertools.zip_longest(*sequences) for row in turn if row is not None]
    batches = [
        {"input_ids": batch}
        for _, group in itertools.groupby(in_turn, len)
        for batch in torch.stack(list(group)).split(batch_size)
    ]
    return TokenBatches(batches, ", ".join(part.source for part in parts))


def _batches_of(source, nsamples: int, model, config: SliceGPTConfig, tokenizer) -> TokenBatches:
    sizes = {
        "nsamples": nsamples,
        "seqlen": limit_to_positions(config.seqlen, model.config),
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    if is_generated(source):
        return generate_batches(model, **sizes)
    vocab_size = model.config.vocab_size
    return load_batches(source, tokenizer, text_column=config.text_column, vocab_size=vocab_size, **sizes)
