"""What the text that a model writes begins with."""

import pytest

from optimum_slicegpt.data.beginnings import OPENINGS, Beginnings, chat_turns


USER_TURN = "{% for message in messages %}w1 w2 {{ message['role'] }} {{ message['content'] }} <s> {% endfor %}"


def test_kinds_take_turns(tiny_tokenizer, monkeypatch):
    seen = []

    def read(self, text, add_special_tokens):
        seen.append(text)
        return {"input_ids": [len(seen)] if len(seen) != 2 else []}

    monkeypatch.setattr(type(tiny_tokenizer), "__call__", read)
    found = Beginnings.in_words_of(tiny_tokenizer, [1])
    assert found.begin == (1,) and found.turns == ()
    assert seen[: len(OPENINGS)] == [texts[0] for texts in OPENINGS.values()]
    assert sorted(seen) == sorted(text for texts in OPENINGS.values() for text in texts)
    assert [each for (each,) in found.openings] == [1, *range(3, 1 + len(seen))]  # the second had no token


def test_without_a_tokenizer_a_random_token_follows():
    found = Beginnings.in_words_of(None, [1])
    assert found == Beginnings((1,))
    assert found.of_text(0) == found.of_text(7) == ([1], True, False)


@pytest.mark.parametrize(
    "template, turns",
    [
        (USER_TURN, [[1, 2, 96], [97, 1, 2, 96], [97, 1, 2, 96]]),
        (USER_TURN.replace("<s>", "w3"), [[1, 2, 96]]),  # somebody may say w3
        (None, []),
        ("w1 w2", []),  # the words are gone
        ("w1 {{ messages[0]['content'] }} w2", []),
        ("w1 {{ messages[0]['content'] | upper }}", []),
        (USER_TURN.replace("<s> ", "").replace("w1 w2 {{ message['role'] }}", ""), []),
        ("{{ raise_exception('no users') }}", []),
    ],
)
def test_what_stands_around_the_words_of_a_conversation(tiny_tokenizer, template, turns, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    assert chat_turns(tiny_tokenizer) == turns
    assert chat_turns(None) == []
