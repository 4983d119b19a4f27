"""Texts and conversations, packed into sequences to train on and to hold out."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from recovering import turns
from tiny import tokens

from optimum_slicegpt.recovery.chat import UNLABELLED, Conversation, conversation_tokeniser
from optimum_slicegpt.recovery.conversations import load_conversations
from optimum_slicegpt.recovery.packing import load_sequences


SIZES = {"nsamples": 100, "seqlen": 8, "held_out": 1}
CHAT = (
    "{% for message in messages %}{{ 'w1 ' if message['role'] == 'user' else 'w2 ' }}{{ message['content'] }} w3 "
    "{% endfor %}{% if add_generation_prompt %}w2 {% endif %}"
)
"""A user's turn is `w1 ... w3`, an assistant's `w2 ... w3`."""


@pytest.fixture
def chat_tokenizer(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


def text(start, length):
    return " ".join(f"w{(start + index) % 96}" for index in range(length))


def everything(sequences, key="input_ids"):
    return torch.cat([sequence[key] for sequence in sequences.train + sequences.held_out]).tolist()


# Texts


def test_texts_are_joined_by_the_end_token_and_cut_without_a_gap(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "w95"
    sequences = load_sequences([text(0, 20), text(40, 20)], tokenizer, **SIZES)
    ids = everything(sequences)
    first, second = list(range(20)), list(range(40, 60))
    assert ids == (first + [95] + second + [95])[:40] or ids == (second + [95] + first + [95])[:40]
    assert everything(sequences, "labels") == ids
    assert [len(sequences.train), len(sequences.held_out), sequences.source] == [4, 1, "texts"]


def test_documents_are_shuffled_by_the_seed(tiny_tokenizer):
    texts = [text(8 * index, 8) for index in range(12)]
    orders = [everything(load_sequences(texts, tiny_tokenizer, **SIZES, seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(96))


@pytest.mark.parametrize("held_out, number", [(3, 3), (0.25, 3), (0.01, 1)])
def test_the_last_sequences_are_held_out(held_out, number, tiny_tokenizer):
    sequences = load_sequences([text(0, 96)], tiny_tokenizer, **SIZES | {"held_out": held_out})
    assert len(sequences.held_out) == number
    assert everything(sequences) == list(range(96))


def test_no_more_sequences_than_asked_for(tiny_tokenizer):
    sequences = load_sequences([text(0, 96)], tiny_tokenizer, **SIZES | {"nsamples": 5})
    assert everything(sequences) == list(range(40))


def test_a_short_dataset_is_used_with_a_warning(tiny_tokenizer, caplog):
    load_sequences([text(0, 96)], tiny_tokenizer, **SIZES)
    assert "Dataset 'texts' makes 12 of 100 sequences of 8 tokens: using these." in caplog.text


def test_too_little_data(tiny_tokenizer):
    message = "Dataset 'texts' makes 3 sequences of 8 tokens, and held_out=3 of them leaves none to train on"
    with pytest.raises(ValueError, match=message):
        load_sequences([text(0, 30)], tiny_tokenizer, **SIZES | {"held_out": 3})


def test_text_columns_of_tables(tmp_path, tiny_tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": text(0, 40), "instruction": text(40, 40)}))
    assert everything(load_sequences(path, tiny_tokenizer, **SIZES)) == list(range(40))
    chosen = load_sequences(path, tiny_tokenizer, **SIZES, text_column="instruction")
    assert everything(chosen) == list(range(40, 80))


# Conversations


def test_only_answers_are_labelled(chat_tokenizer):
    rows = [{"messages": turns("w10 w11", "w12", "w13", "w14 w15")}] * 8
    sequences = load_sequences(rows, chat_tokenizer, **SIZES | {"seqlen": 16})
    assert sequences.source == "conversations"
    one = [1, 10, 11, 3, 2, 12, 3, 1, 13, 3, 2, 14, 15, 3]
    labels = [*[UNLABELLED] * 5, 12, 3, *[UNLABELLED] * 4, 14, 15, 3]
    assert everything(sequences) == (one * 8)[: 7 * 16]
    assert everything(sequences, "labels") == (labels * 8)[: 7 * 16]


def test_prompts_count_where_asked(chat_tokenizer):
    sequences = load_sequences([{"messages": turns("w10", "w12")}] * 8, chat_tokenizer, **SIZES, mask_prompts=False)
    assert everything(sequences) == everything(sequences, "labels")


def test_sequences_without_a_label_are_dropped(chat_tokenizer):
    rows = [{"messages": turns(text(4, 60), "w12 w13 w14")}]
    sequences = load_sequences(rows * 4, chat_tokenizer, **SIZES)
    assert all((sequence["labels"] != UNLABELLED).any() for sequence in sequences.train + sequences.held_out)
    assert len(sequences.train + sequences.held_out) < 4 * 67 // 8 / 2


def test_no_chat_template(tiny_tokenizer):
    with pytest.raises(ValueError, match="Conversations need a chat template, and this tokenizer has none"):
        load_sequences([{"messages": turns("w4", "w5")}], tiny_tokenizer, **SIZES)


THINKS = "{% if message['role'] == 'assistant' and loop.last %}w7 {% endif %}{{ message['content'] }}"
REWRITING = {
    "reasoning-of-the-last": CHAT.replace("{{ message['content'] }}", THINKS),
    "counting": "{{ 'w90 ' * messages | length }}" + CHAT,
    "prompt-unlike-answer": CHAT.replace("%}w2 {% endif %}", "%}w2 w8 {% endif %}"),
    "trimmed-history": "{% set messages = messages[-2:] if not add_generation_prompt else messages[-1:] %}" + CHAT,
}
"""Chat templates that render earlier messages anew."""


@pytest.mark.parametrize("name", REWRITING)
def test_templates_that_rewrite_earlier_turns(chat_tokenizer, name):
    chat_tokenizer.chat_template = REWRITING[name]
    for rows, answers in ((turns("w10", "w12"), [[12, 3]]), (turns("w10", "w12", "w13", "w14"), [[12, 3], [14, 3]])):
        tokenise = conversation_tokeniser(chat_tokenizer, mask_prompts=True)
        ids, labels = tokenise(Conversation(rows))
        assert len(ids) == len(labels)
        assert [label for label in labels if label not in (UNLABELLED, 7)] == [t for each in answers for t in each]
        whole = chat_tokenizer.apply_chat_template(rows, tokenize=False)
        expected = chat_tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert ids[len(ids) - len(expected) :] == expected
        ids, labels = conversation_tokeniser(chat_tokenizer, mask_prompts=False)(Conversation(rows))
        assert ids == labels == expected


def test_answers_beside_their_content_count(chat_tokenizer):
    """Calls of tools have no content."""
    template = REWRITING["prompt-unlike-answer"]
    chat_tokenizer.chat_template = template.replace("message['content']", "message['call'] or message['content']")
    rows = [*turns("w10", ""), {"role": "tool", "content": "w61"}, {"role": "assistant", "content": "w62"}]
    rows[1]["call"] = "w60"
    ids, labels = conversation_tokeniser(chat_tokenizer, mask_prompts=True)(Conversation(rows))
    assert [label for label in labels if label != UNLABELLED] == [60, 3, 62, 3]
    assert len(ids) == len(labels)


@pytest.mark.parametrize("given", [list, json.dumps, np.array])
def test_templates_are_told_of_tools(given, chat_tokenizer):
    chat_tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}" + CHAT
    rows = [{"messages": turns("w10", "w11"), "tools": given([{"name": "w50"}])}, {"messages": turns("w12", "w13")}]
    found = map(conversation_tokeniser(chat_tokenizer, mask_prompts=False), load_conversations(rows)[0])
    assert [ids for ids, _ in found] == [[50, 1, 10, 3, 2, 11, 3], [1, 12, 3, 2, 13, 3]]


def test_a_conversation_that_the_template_refuses_is_left_out(chat_tokenizer, caplog):
    chat_tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No!') }}{% endif %}" + CHAT
    )
    rows = [{"messages": turns("w10 w11", "w12")}] * 8
    refused = {"messages": [{"role": "system", "content": "w4"}, *turns("w10", "w12")]}
    chat_tokenizer.chat_template += "{{ messages[0].content + '' }}"  # which takes no parts of a content
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "w4"}]}, *turns("w10", "w12")[1:]]}
    found = [everything(load_sequences(data, chat_tokenizer, **SIZES)) for data in (rows, [*rows, refused, parts])]
    assert found[0] == found[1]
    assert caplog.text.count("The chat template refuses a conversation, which is left out: No!") == 1


def test_a_conversation_may_begin_with_an_assistant(chat_tokenizer):
    rows = [{"role": "assistant", "content": "w9"}, *turns("w10", "w12")]
    ids, labels = conversation_tokeniser(chat_tokenizer, mask_prompts=True)(Conversation(rows))
    assert ids == [2, 9, 3, 1, 10, 3, 2, 12, 3]
    assert labels == [UNLABELLED] * 7 + [12, 3]


def test_templates_need_jinja2(chat_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'need jinja2: pip install "optimum-slicegpt\[report\]"'):
        conversation_tokeniser(chat_tokenizer, mask_prompts=True)


def test_random_generators_are_left_alone(tiny_tokenizer):
    state = torch.random.get_rng_state()
    load_sequences([" ".join(f"w{token}" for token in tokens(1, 64)[0].tolist())] * 2, tiny_tokenizer, **SIZES)
    assert torch.equal(torch.random.get_rng_state(), state)
