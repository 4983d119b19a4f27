"""
What the text that a model writes begins with: words of many kinds of text, and the turns of conversations.

From a random token a model mostly goes on in prose, and what other kinds need is deleted. A SmolLM2 that became 20 %
smaller on half of its own text lost 0.87 nats on code with random tokens, and 0.53 with these words; in the mean over
four kinds of text 0.68 and 0.56.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


OPENINGS = {
    "facts": "The history of|He was born in|In the early|It is a|The city of|One of the|According to|During the",
    "programs": "def|#include <|import|public class|function|package|class|use",
    "questions": "Question:|How do I|Problem:|What is|Explain|Write|List|Translate",
    "stories": 'Once upon a time|Chapter 1\n\n|She|"|The old man|Scene 1\n\n|It was|When I',
    "manuals and data": 'Usage:|{\n  "|Parameters\n----------\n|<!DOCTYPE html>\n|NAME\n    |SELECT|# |#!/bin/sh\n',
    "science": "Abstract\n\n|Theorem 1.|Introduction\n\n|Definition.|\\section{|Patients|Figure 1:|Article 1\n",
    "talk": "Dear|User:|From:|A:|Review:|I think|Thank you|Le",
    "advice": "How to|Step 1:|News:|Recipe:|If you|There are|Note:|Die",
}
OPENINGS = {kind: words.split("|") for kind, words in OPENINGS.items()}
"""Kind of text -> words that texts of it begin with."""

SENTINELS = ("slicegptwordsoftheuser", "slicegptwordsofthemodel", "slicegptwordsafterwards")
"""Stand for what is said in turns where a chat template is rendered, which are to be found again in its result."""


@dataclass(frozen=True)
class Beginnings:
    """
    What texts that a model writes begin with, in token ids.

    Args:
        begin (`tuple[int, ...]`): what any text of the model begins with, see [`begin_tokens`].
        openings (`tuple[tuple[int, ...], ...]`): first words of texts, see [`OPENINGS`].
        turns (`tuple[tuple[int, ...], ...]`): what a conversation has around its words, see [`chat_turns`].
    """

    begin: tuple[int, ...] = ()
    openings: tuple[tuple[int, ...], ...] = ()
    turns: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def in_words_of(cls, tokenizer: Any, begin: Iterable[int] = ()) -> Beginnings:
        """
        Finds what a model's texts begin with.

        Args:
            tokenizer (`PreTrainedTokenizerBase`, *optional*): of the model. Without it there are no words.
            begin (`Iterable[int]`, *optional*): what any text of the model begins with.
        """
        openings = []
        if tokenizer is not None:
            # Kinds take turns, so that a few texts are of as many kinds as can be.
            words = itertools.chain.from_iterable(zip(*OPENINGS.values(), strict=True))
            openings = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in words]
        return cls(tuple(begin), _frozen(filter(None, openings)), _frozen(chat_turns(tokenizer)))

    def of_text(self, number: int) -> tuple[list[int], bool, bool]:
        """
        Returns what a text begins with. Odd ones are conversations, if there are turns, and the others take the
        openings one after the other.

        Args:
            number (`int`): of the text.

        Returns:
            `tuple[list[int], bool, bool]`: token ids; whether a random one follows; whether the user speaks.
        """
        if self.turns and number % 2:
            return begun_once(self.turns[0], self.begin), False, True
        if not self.openings:
            return [*self.begin], True, False
        place = number // (2 if self.turns else 1)
        return [*self.begin, *self.openings[place % len(self.openings)]], False, False


NO_WORDS = Beginnings()
"""Where there is no tokenizer: random tokens."""


def _frozen(parts: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, parts))


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
