"""Tokenises conversations by a chat template, and labels the answers."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from transformers.utils import logging

from ..evaluation.losses import UNLABELLED


logger = logging.get_logger(__name__)

Tokens = tuple[list[int], list[int]]
"""Ids and labels of a document. A label is the id, or `UNLABELLED`."""

OTHER_ANSWER = "\N{SNOWMAN}"
"""An answer that has no beginning in common with others."""


class Conversation(list):
    """
    Messages, each with a role, and a content or calls of tools, which the chat template may know.

    Args:
        messages (`Iterable[dict]`): the messages.
        tools (`list[dict]`, *optional*): JSON schemas of the tools that the model may call.
    """

    def __init__(self, messages: Iterable[dict[str, Any]], tools: list[dict[str, Any]] | None = None):
        super().__init__(messages)
        self.tools = tools


def token_ids(tokenizer: Any, text: str) -> list[int]:
    # The text may be longer than the model's context, of which tokenizers warn unless verbose=False.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def conversation_tokeniser(tokenizer: Any, mask_prompts: bool) -> Callable[[Conversation], Tokens]:
    """
    Returns a function that tokenises a conversation, up to its last answer. It returns nothing for a conversation that
    the template refuses, with a warning.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): has a chat template.
        mask_prompts (`bool`): whether only answers have labels.

    Raises:
        ValueError: there is no chat template.
        ImportError: jinja2, in which templates are written, is not installed.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "Conversations need a chat template, and this tokenizer has none. Give the tokenizer of a chat model, set "
            "tokenizer.chat_template, or give texts."
        )
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError('Chat templates need jinja2: pip install "optimum-slicegpt[report]"') from error

    def tokenise(conversation):
        def render(messages, prompt=False):
            return tokenizer.apply_chat_template(
                messages, tools=conversation.tools, tokenize=False, add_generation_prompt=prompt
            )

        # An answer is tokenised apart from its prompt, as it is when the model writes one.
        ids, labels = [], []
        try:
            pieces = _in_one_piece(render, conversation) or _answer_by_answer(render, conversation, mask_prompts)
        except Exception as error:  # A template is a program: it may raise anything.
            logger.warning_once(f"The chat template refuses a conversation, which is left out: {error}")
            pieces = []
        for text, is_answer in pieces:
            more = token_ids(tokenizer, text)
            ids += more
            labels += more if is_answer or not mask_prompts else [UNLABELLED] * len(more)
        return ids, labels

    return tokenise


def _answers(messages):
    # The first message answers nothing.
    return [index for index, message in enumerate(messages) if index and message["role"] == "assistant"]


def _in_one_piece(render, messages):
    """Returns prompts and answers in turns, or nothing where the template renders earlier messages anew."""
    pieces, done = [], ""
    for index in _answers(messages):
        for end, is_answer in ((index, False), (index + 1, True)):
            text = render(messages[:end], prompt=not is_answer)
            if not text.startswith(done):
                return []
            pieces.append((text[len(done) :], is_answer))
            done = text
    return pieces


def _answer_by_answer(render, messages, mask_prompts):
    """Returns each answer behind all that was said before, as the model reads it then; or all once, if all counts."""
    answers, pieces = _answers(messages), []
    if not mask_prompts:
        return [(render(messages[: answers[-1] + 1]), True)]
    for index in answers:
        text, prompt = render(messages[: index + 1]), render(messages[:index], prompt=True)
        if not text.startswith(prompt):  # The answer begins where another one would make a difference.
            other = render([*messages[:index], {"role": "assistant", "content": OTHER_ANSWER}])
            prompt = os.path.commonprefix([text, other])
        pieces += [(prompt, False), (text[len(prompt) :], True)]
    return pieces
