"""Packs texts or conversations into sequences of one length, to train on and to hold out."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..data.batches import begun, find_tokenizer
from ..data.tables import list_items
from ..data.texts import load_texts
from ..evaluation.losses import UNLABELLED
from .chat import Tokens, conversation_tokeniser, token_ids
from .conversations import load_conversations


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PackedSequences:
    """
    Sequences to train on, and others to measure on. No token is in both.

    Args:
        train (`list[dict[str, torch.Tensor]]`), held_out (`list[dict[str, torch.Tensor]]`):
            Each sequence has `input_ids` and `labels` `(T,)`, int64, and a held-out one `kind`, an index of `kinds`.
        kinds (`tuple[str, ...]`):
            The data that was used: a name of `DATASETS`, file names, `"texts"`, `"conversations"` or `"self"`.
    """

    train: list[dict[str, Tensor]]
    held_out: list[dict[str, Tensor]]
    kinds: tuple[str, ...]

    @property
    def source(self) -> str:
        """All kinds, joined by commas."""
        return ", ".join(self.kinds)


def load_sequences(
    dataset: Any,
    tokenizer: Any,
    *,
    nsamples: int,
    seqlen: int,
    held_out: int | float,
    seed: int = 0,
    text_column: str | None = None,
    mask_prompts: bool = True,
    begin: Sequence[int] = (),
) -> PackedSequences:
    """
    Packs a dataset: shuffles its documents, joins them, and cuts them into sequences without a gap.

    A sequence may hold the end of one document and the beginning of the next. Texts end with the tokenizer's
    end-of-sequence token, or with a blank line if it has none, and conversations as the chat template ends them.
    Nothing else separates documents: attention and positions cross their boundaries, as in pretraining. Tokens at the
    end that fill no sequence are dropped, and so are sequences without a label.

    The last sequences are held out. As documents are shuffled, these are random documents, and at most one document is
    divided between both parts. Of a dataset that is a single text, the end is held out.

    Args:
        dataset:
            Text: a name of `DATASETS` or `"auto"`, a path or list of paths, texts, or rows, see [`load_texts`].
            Conversations: paths of tables, or rows, see [`load_conversations`].
        tokenizer (`PreTrainedTokenizerBase` or `str`): the object, its name or its path.
        nsamples (`int`): number of sequences. A dataset with too few tokens makes fewer, with a warning.
        seqlen (`int`): tokens per sequence.
        held_out (`int` or `float`): sequences to hold out: their number, or their share, but at least one.
        seed (`int`, defaults to 0): draws the order of documents.
        text_column (`str`, *optional*):
            Column of a table that holds the text. By default the dataset's own, "text", or the only one of strings.
        mask_prompts (`bool`, defaults to `True`): whether only the answers of conversations have labels.
        begin (`Sequence[int]`, *optional*):
            Tokens in front of each sequence, which count among its `seqlen`: see [`begin_tokens`].

    Returns:
        [`PackedSequences`]: the same ones for the same arguments.

    Raises:
        ConnectionError: a named dataset is neither on the Hub nor in its cache.
        FileNotFoundError: a path is not a file.
        ValueError: the dataset cannot be used, see [`load_texts`] and [`load_conversations`]; there is no tokenizer or
            no chat template; there are too few sequences.
    """
    tokenizer = find_tokenizer(tokenizer)
    if not isinstance(dataset, str | os.PathLike):
        dataset = list_items(dataset)  # It may be read once only.
    conversations = load_conversations(dataset) if text_column is None else None
    if conversations is None:
        documents, source = load_texts(dataset, text_column=text_column)
        tokenise = _text_tokeniser(tokenizer)
    else:
        documents, source = conversations
        tokenise = conversation_tokeniser(tokenizer, mask_prompts)

    ids, labels, room = [], [], max(1, seqlen - len(begin))
    for index in random.Random(seed).sample(range(len(documents)), len(documents)):
        if len(ids) >= nsamples * room:
            break
        for tokens, more in zip((ids, labels), tokenise(documents[index]), strict=True):
            tokens.extend(more)
    count = min(len(ids) // room, nsamples)
    if count < nsamples:
        logger.warning(f"Dataset {source!r} makes {count} of {nsamples} sequences of {seqlen} tokens: using these.")
    rows = torch.tensor([ids[: count * room], labels[: count * room]]).view(2, count, room)
    sequences = [
        {"input_ids": input_ids, "labels": labels}
        for input_ids, labels in zip(*(begun(each, begin) for each in rows), strict=True)
        if (labels[1:] != UNLABELLED).any()
    ]
    return hold_out(sequences, held_out, seqlen, source)


def hold_out(sequences: list[dict[str, Tensor]], held_out: int | float, seqlen: int, kind: str) -> PackedSequences:
    """
    Holds out the last sequences of one kind.

    Args:
        sequences (`list[dict[str, torch.Tensor]]`): each has `input_ids` and `labels`.
        held_out (`int` or `float`), seqlen (`int`): see [`load_sequences`].
        kind (`str`): names the data.

    Raises:
        ValueError: none is left to train on.
    """
    ntrain = len(sequences) - (held_out if isinstance(held_out, int) else max(round(held_out * len(sequences)), 1))
    if ntrain < 1:
        raise ValueError(
            f"Dataset {kind!r} makes {len(sequences)} sequences of {seqlen} tokens, and held_out={held_out} of them "
            "leaves none to train on. Give more data, or lower seqlen or held_out."
        )
    return PackedSequences(
        sequences[:ntrain], [sequence | {"kind": torch.tensor(0)} for sequence in sequences[ntrain:]], (kind,)
    )


def join_kinds(parts: Sequence[PackedSequences]) -> PackedSequences:
    """Joins sequences of several kinds, each of them [`hold_out`]'s."""
    return PackedSequences(
        [sequence for part in parts for sequence in part.train],
        [each | {"kind": torch.tensor(index)} for index, part in enumerate(parts) for each in part.held_out],
        tuple(kind for part in parts for kind in part.kinds),
    )


def _text_tokeniser(tokenizer: Any) -> Callable[[str], Tokens]:
    """Returns a function that tokenises a text, and labels all of it."""
    end = token_ids(tokenizer, "\n\n") if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenise(text):
        ids = token_ids(tokenizer, text) + end
        return ids, ids

    return tokenise
