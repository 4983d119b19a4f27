"""Builds the calibration batches of a run: from datasets, tokens, and text that the model writes."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration import SliceGPTConfig
from ..modeling.families import begin_tokens
from ..modeling.towers import image_inputs
from .batches import TokenBatches, find_tokenizer, limit_to_positions, load_batches
from .generated import OWN_TOKENS, TEXT_LENGTH, OwnText, count_sequences, own_text
from .tables import holds_text, list_items
from .texts import NAMES, is_generated


logger = logging.get_logger(__name__)

HELD_OUT = 4096
"""About as many tokens of each kind of text are measured on."""


def calibration_batches(
    model: PreTrainedModel,
    config: SliceGPTConfig,
    tokenizer: Any = None,
    weights: Callable[[str], Tensor] | None = None,
) -> TokenBatches:
    """
    Builds the batches that a run calibrates on. Each source is a group of its own: the datasets, in the order in which
    they are listed, and the text that the model writes itself, last where `"self"` is not among them.

    Own text comes from the cache, see [`OwnText`], as far as it is there. The model writes the rest, in the first of
    several processes, from which the others get it.

    Args:
        model (`PreTrainedModel`): a dense causal language model.
        config ([`SliceGPTConfig`]):
            Names the data (`dataset`) and its size (`nsamples`, `seqlen`, `own_tokens`, `batch_size`).
        tokenizer (`str` or tokenizer, *optional*):
            Turns text into tokens. By default `config.tokenizer`, then `model.name_or_path`.
        weights (`Callable[[str], torch.Tensor]`, *optional*):
            Reads a parameter by its name, of a model on `meta`. Such a model cannot write, so own text comes from the
            cache alone. Where that has too little of it, there is none, with a warning.

    Returns:
        [`TokenBatches`]: the same ones for the same arguments. Each dataset of a mixture has as many sequences as any
        other, or one more.

    Raises:
        ConnectionError: a named dataset is neither on the Hub nor in its cache; another process has failed.
        FileNotFoundError: a path is not a file.
        ValueError: the dataset, the tokenizer or the tokens cannot be used, see [`load_batches`]; a mixture holds
            something that is no name or path, or has fewer sequences than sources; `"self"` is among the datasets, and
            the cache of a model on `meta` has too little; text makes fewer tokens than the stream has dimensions.
    """
    sources, tokenizer, seqlen, own_tokens, own = _choose_sources(model, config, tokenizer)
    if own_tokens and weights is not None:
        cached = OwnText.of_model(model, _found(tokenizer), weights=weights, **own)
        if not _is_written(cached, own_tokens, model, required=any(map(is_generated, sources))):
            own_tokens = 0

    parts = _load_others(sources, model, config, tokenizer, seqlen, own_tokens)
    if own_tokens:  # It comes last: that takes longest, and other sources may fail.
        if weights is None:
            ids = own_text(model, _found(tokenizer), tokens=own_tokens, device=config.device, **own)
        else:
            ids = cached.read()[: count_sequences(own_tokens, cached.length)]
        # Of shorter sequences a batch has more.
        batches = [{"input_ids": part} for part in ids.split(config.batch_size * seqlen // own["length"])]
        parts[next(index for index in itertools.count() if index not in parts)] = TokenBatches(batches, "self")
    batches = mix_batches([parts[index] for index in sorted(parts)])
    if batches.ntokens < model.config.hidden_size:
        few = (
            f"{batches.ntokens} calibration tokens for a hidden size of {model.config.hidden_size}: fewer tokens "
            "than dimensions leave axes undetermined."
        )
        if all(map(_is_text, sources)):
            raise ValueError(f"{few} Give more text, or raise nsamples or seqlen.")
        logger.warning(f"{few} Give more.")  # Who gives tokens has counted them.
        return batches
    for part in parts.values():
        if part.ntokens < model.config.hidden_size:
            logger.warning(
                f"{part.source!r} has {part.ntokens} calibration tokens for a hidden size of "
                f"{model.config.hidden_size}, and counts as much as any other kind of text. Give more of it, or leave "
                "it out."
            )
    return batches


def held_out_batches(
    model: PreTrainedModel, config: SliceGPTConfig, tokenizer: Any = None, tokens: int = HELD_OUT
) -> list[TokenBatches]:
    """
    Builds batches to measure on, of every kind of text that a run calibrates on: tokens that it does not see. Of
    tokens, and of a text that is calibrated on as a whole, there are none.

    Args:
        model (`PreTrainedModel`): a dense causal language model, which writes what its cache lacks.
        config ([`SliceGPTConfig`]), tokenizer (`str` or tokenizer, *optional*): those of [`calibration_batches`].
        tokens (`int`): about how many of each kind.

    Returns:
        `list[TokenBatches]`: one for each kind, with its name.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: see [`calibration_batches`].
    """
    sources, tokenizer, seqlen, own_tokens, own = _choose_sources(model, config, tokenizer)
    parts = []
    if all(map(_is_text, sources)):
        held_out = count_sequences(tokens, seqlen)
        parts += _load_others(sources, model, config, tokenizer, seqlen, own_tokens, held_out).values()
    if own_tokens:
        seen, count = (count_sequences(each, own["length"]) for each in (own_tokens, tokens))
        needed = (seen + count) * own["length"]
        ids = own_text(model, _found(tokenizer), tokens=needed, device=config.device, **own)[seen:]
        parts.append(TokenBatches([{"input_ids": part} for part in ids.split(config.batch_size)], "self"))
    return [part for part in parts if part.ntokens]


def _choose_sources(model, config, tokenizer):
    """
    Returns the sources of the data, the tokenizer, the length of sequences, the number of tokens that the model
    writes, and the settings of what it writes.

    Raises:
        ValueError: there are fewer sequences than sources.
    """
    given = config.dataset
    if not isinstance(given, str | os.PathLike | TokenBatches):
        given = list_items(given)  # It may be read once only.
    sources = list_sources(given)
    if config.nsamples < len(sources):
        raise ValueError(f"nsamples={config.nsamples} is less than the number of datasets to mix, {len(sources)}.")
    tokenizer = tokenizer or config.tokenizer or model.name_or_path
    seqlen = limit_to_positions(config.seqlen, model.config)
    own_tokens = _count_own_tokens(config, sources, seqlen)
    own = {"length": min(TEXT_LENGTH, seqlen), "seed": config.seed}
    return sources, tokenizer, seqlen, own_tokens, own


def _count_own_tokens(config: SliceGPTConfig, sources: list[Any], seqlen: int) -> int:
    """Returns how many tokens the model writes: what is asked for, its share of a mixture, or half beside text."""
    generated = sum(map(is_generated, sources))
    if config.own_tokens is not None and (config.own_tokens or not generated):
        return config.own_tokens
    if generated:
        return config.nsamples * seqlen * generated // len(sources)
    if not all(map(_is_text, sources)):
        return 0
    return min(config.nsamples * seqlen // 2, OWN_TOKENS, (config.nsamples - len(sources)) * seqlen)


def _load_others(sources, model, config, tokenizer, seqlen, own_tokens, held_out=0) -> dict[int, TokenBatches]:
    """Loads the sources that the model does not write: they share what own text leaves of `nsamples`."""
    others = {index: source for index, source in enumerate(sources) if not is_generated(source)}
    nsamples = config.nsamples - round(own_tokens / seqlen)
    if nsamples < len(others):
        if all(map(_is_text, sources)):
            raise ValueError(
                f"own_tokens={own_tokens} leaves {max(nsamples, 0)} of {config.nsamples} sequences for other data; "
                "raise nsamples, or lower own_tokens."
            )
        nsamples = 1  # Tokens are used as they are.
    settings = {"text_column": config.text_column, "vocab_size": model.config.vocab_size, "seqlen": seqlen}
    settings |= {"batch_size": config.batch_size, "seed": config.seed, "held_out": held_out}
    settings |= {"begin": begin_tokens(model.config), "also": image_inputs(model)}
    shares = (len(range(turn, nsamples, len(others))) for turn in range(len(others)))
    return {
        index: load_batches(source, tokenizer, nsamples=share, **settings)
        for (index, source), share in zip(others.items(), shares, strict=True)
    }


def _is_text(dataset: Any) -> bool:
    """Tells whether a dataset is text, and no tokens."""
    return holds_text(list_items(dataset))


def _found(tokenizer: Any) -> Any:
    """Returns a tokenizer, or `None` where none can be loaded: own text takes no more than its words and turns."""
    try:
        return find_tokenizer(tokenizer)
    except ValueError:
        return None


def _is_written(own: OwnText, tokens: int, model: PreTrainedModel, required: bool) -> bool:
    """
    Tells whether the cache has as much text of the model itself, and warns if not.

    Raises:
        ValueError: it has not, and they are required.
    """
    found, count = len(own.read()), count_sequences(tokens, own.length)
    if found >= count:
        return True
    sizes = f"--tokens {count * own.length} --seqlen {own.length} --seed {own.seed}"
    remedy = f"optimum-cli slicegpt write --model {model.name_or_path} {sizes}"
    missing = f"A model that is streamed cannot write, and {found} of {count} sequences of its own text are cached"
    if required:
        raise ValueError(f"{missing}; write them first: {remedy}.")
    logger.warning(f"{missing}: calibrating on other data alone. To write them: {remedy}")
    return False


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


def mix_batches(parts: Sequence[TokenBatches]) -> TokenBatches:
    """
    Mixes the batches of several sources. They take turns in proportion to their numbers, so that the first batches
    have about the mixture of all. Each source is a group of its own, or as many as it has.

    Args:
        parts (`Sequence[TokenBatches]`): batches of each source.

    Returns:
        [`TokenBatches`]: the same batches; its source names all sources.

    Examples:
        >>> import torch
        >>> many = TokenBatches([{"input_ids": torch.tensor([[i]])} for i in range(4)], "many")
        >>> few = TokenBatches([{"input_ids": torch.tensor([[i]])} for i in (8, 9)], "few")
        >>> mixture = mix_batches([many, few])
        >>> mixture.source, [batch["input_ids"].item() for batch in mixture], mixture.groups
        ('many, few', [0, 8, 1, 2, 9, 3], (0, 1, 0, 0, 1, 0))
    """
    placed, first_group = [], 0
    for part in parts:
        for index, (batch, group) in enumerate(zip(part.batches, part.groups, strict=True)):
            placed.append(((index + 0.5) / len(part.batches), batch, first_group + group))
        first_group += 1 + max(part.groups)
    placed.sort(key=lambda item: item[0])  # Sources keep their order where they are equal.
    _, batches, groups = zip(*placed, strict=True)
    return TokenBatches(list(batches), ", ".join(part.source for part in parts), groups)
