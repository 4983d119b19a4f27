"""Texts or conversations -> sequences of one length, to train on and to hold out."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..calibration import find_tokenizer
from ..texts import load_texts
from .conversations import Conversation, load_conversations


logger = logging.get_logger(__name__)

UNLABELLED = -100
"""What transformers puts where a token is not to be predicted."""

Tokens = tuple[list[int], list[int]]
"""Ids, and labels: the ids again, or `UNLABELLED`."""


@dataclass(frozen=True)
class PackedSequences:
    """
    Sequences to train on, and others to measure on.

    Args:
        train (`list[dict[str, torch.Tensor]]`), held_out (`list[dict[str, torch.Tensor]]`):
            Each sequence has `input_ids` and `labels` `(T,)`, int64. No token is in both.
        source (`str`): what was really used: a name of `DATASETS`, file names, `"texts"` or `"conversations"`.
    """

    train: list[dict[str, Tensor]]
    held_out: list[dict[str, Tensor]]
    source: str


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
) -> PackedSequences:
    """
    Packs a dataset: its documents are shuffled, joined, and cut into sequences without a gap.

    A sequence may hold the end of one document and the beginning of the next. Texts end with the tokenizer's
    end-of-sequence token (with a blank line, if it has none), conversations as the chat template ends them; beyond
    that nothing keeps documents apart: attention and positions run on across the boundary, as in pretraining. The tail
    that fills no sequence is dropped, and so are sequences without a label.

    The last sequences are held out. As documents are shuffled, they are a random part of these, of which at most one
    is divided between the two parts; of a dataset that is a single text they are the end.

    Args:
        dataset: what `load_conversations` or `load_texts` takes.
        tokenizer (`PreTrainedTokenizerBase` or `str`): the object, its name or its path.
        nsamples (`int`): sequences in all. A dataset with fewer gives what it has, with a warning.
        seqlen (`int`): tokens per sequence.
        held_out (`int` or `float`): sequences to hold out: their number, or their share, but at least one.
        seed (`int`, defaults to 0): of the order of documents.
        text_column (`str`, *optional*): as in `load_texts`.
        mask_prompts (`bool`, defaults to `True`): whether only what assistants say is labelled.

    Returns:
        [`PackedSequences`]: the same ones for the same arguments.

    Raises:
        ConnectionError, FileNotFoundError: as in `load_texts`.
        ValueError: what either refuses; no tokenizer or no chat template; too little data.
    """
    tokenizer = find_tokenizer(tokenizer)
    found = load_conversations(dataset) if text_column is None else None
    if found is None:
        documents, source = load_texts(dataset, text_column=text_column)
        tokenised = _text_tokeniser(tokenizer)
    else:
        documents, source = found
        tokenised = _conversation_tokeniser(tokenizer, mask_prompts)

    ids, labels = [], []
    for index in random.Random(seed).sample(range(len(documents)), len(documents)):
        if len(ids) >= nsamples * seqlen:
            break
        for everything, more in zip((ids, labels), tokenised(documents[index]), strict=True):
            everything.extend(more)
    count = min(len(ids) // seqlen, nsamples)
    if count < nsamples:
        logger.warning(f"Dataset {source!r} makes {count} of {nsamples} sequences of {seqlen} tokens: using these.")
    rows = torch.tensor([ids[: count * seqlen], labels[: count * seqlen]]).view(2, count, seqlen)
    sequences = [
        {"input_ids": input_ids, "labels": labels}
        for input_ids, labels in zip(*rows, strict=True)
        if (labels[1:] != UNLABELLED).any()
    ]
    cut = len(sequences) - (held_out if isinstance(held_out, int) else max(round(held_out * len(sequences)), 1))
    if cut < 1:
        raise ValueError(
            f"Dataset {source!r} makes {len(sequences)} sequences of {seqlen} tokens, and held_out={held_out} of them "
            "leaves none to train on. Give more data, or lower seqlen or held_out."
        )
    return PackedSequences(sequences[:cut], sequences[cut:], source)


def _text_tokeniser(tokenizer: Any) -> Callable[[str], Tokens]:
    def ids_of(text):
        # verbose=False: that the text is longer than the model's context is the point, not a warning
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    end = ids_of("\n\n") if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def tokenised(text):
        ids = ids_of(text) + end
        return ids, ids

    return tokenised


def _conversation_tokeniser(tokenizer: Any, mask_prompts: bool) -> Callable[[Conversation], Tokens]:
    if not tokenizer.chat_template:
        raise ValueError(
            "Conversations need a chat template, and this tokenizer has none. Give the tokenizer of a chat model, set "
            "tokenizer.chat_template, or give texts."
        )

    def tokenised(messages):
        # An answer is tokenised apart from its prompt, as it is when the model gives one.
        ids, labels, done = [], [], ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            for upto, is_answer in ((index, False), (index + 1, True)):
                text = tokenizer.apply_chat_template(
                    messages[:upto], tokenize=False, add_generation_prompt=not is_answer
                )
                if not text.startswith(done):
                    raise ValueError(
                        "This chat template changes what has been said when the conversation goes on, so prompts and "
                        f"answers cannot be told apart. It turned {done[-80:]!r} into something else. Give "
                        "conversations with one answer each."
                    )
                more = tokenizer(text[len(done) :], add_special_tokens=False, verbose=False)["input_ids"]
                ids += more
                labels += more if is_answer or not mask_prompts else [UNLABELLED] * len(more)
                done = text
        return ids, labels

    return tokenised
