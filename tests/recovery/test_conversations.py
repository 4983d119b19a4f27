"""Conversations in every form that they come in."""

import json

import pytest
from paths import ROOT
from recovering import turns

from optimum_slicegpt.recovery.conversations import load_conversations


SEED_TASKS = ROOT.parent / "shared" / "data" / "seed_tasks.jsonl"


CALL = [
    {"role": "user", "content": "w4"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "w6", "arguments": "w7"}}]},
    {"role": "tool", "content": "w8"},
    {"role": "assistant", "content": "w5"},
]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"messages": turns("w4", "w5") + turns("w6", "w7")}, [turns("w4", "w5", "w6", "w7")]),
        ({"messages": [{"content": None} | message for message in CALL]}, [CALL]),
        ({"instruction": "w4", "output": "w5"}, [turns("w4", "w5")]),
        ({"instruction": "w4", "input": "w6", "output": "w5"}, [turns("w4\n\nw6", "w5")]),
        (
            {"instruction": "w4", "instances": [{"input": "", "output": "w5"}, {"input": "w6", "output": "w7"}]},
            [turns("w4", "w5"), turns("w4\n\nw6", "w7")],
        ),
    ],
    ids=["messages", "call", "output", "input", "instances"],
)
@pytest.mark.parametrize("extension", [None, ".jsonl", ".json", ".parquet"])
def test_rows_of_every_kind(row, expected, extension, tmp_path):
    if extension is None:
        assert load_conversations([row]) == (expected, "conversations")
        return
    path = tmp_path / f"rows{extension}"
    if extension == ".parquet":
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame([row]).to_parquet(path)
    else:
        path.write_text(json.dumps([row] if extension == ".json" else row))
    assert load_conversations(path) == (expected, path.name)


@pytest.mark.parametrize(
    "rows",
    [
        [{"instruction": "w4", "output": "w5"}, {"instruction": "w4", "input": "w6", "output": "w5"}],
        [{"instruction": "w4", "output": "w5", "input": None}, {"messages": turns("w4\n\nw6", "w5")}],
        [{"instruction": "w4", "output": "w5", "input": float("nan")}, None]
        + [{"instruction": "w4", "instances": [{"input": "w6", "output": "w5"}]}],
        [
            {"instruction": "w4", "output": "w5"},
            {"instruction": "", "output": None},
            {"messages": []},
            turns("w4\n\nw6", "w5"),
        ],
    ],
    ids=["optional-key", "two-kinds", "missing-values", "blank-rows-and-a-list"],
)
def test_rows_may_differ(rows, tmp_path):
    expected = [turns("w4", "w5"), turns("w4\n\nw6", "w5")]
    for extension, content in {
        ".jsonl": "\n".join(map(json.dumps, rows)),
        ".json": json.dumps({"data": rows}),
    }.items():
        path = tmp_path / f"rows{extension}"
        path.write_text(content)
        assert load_conversations(path) == (expected, path.name)
    if all(row is None or isinstance(row, dict) for row in rows):
        assert load_conversations(iter(rows)) == (expected, "conversations")


@pytest.mark.parametrize("rows", [[{"title": "w1"}, {"text": "w1 w2"}], [{"content": "w1 w2"}]])
def test_rows_of_text_are_no_conversations(rows, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert load_conversations(rows) is load_conversations(path) is None


def test_texts_are_no_conversations(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "w1", "messages": turns("w4", "w5")}))
    for dataset in ("python-docs", "absent.jsonl", ["w1 w2"], tmp_path / "rows.jsonl"):
        assert load_conversations(dataset) is None


@pytest.mark.skipif(not SEED_TASKS.is_file(), reason=f"needs {SEED_TASKS}")
def test_self_instruct():
    conversations, source = load_conversations(SEED_TASKS)
    assert source == "seed_tasks.jsonl" and len(conversations) >= 175
    assert all([message["role"] for message in messages] == ["user", "assistant"] for messages in conversations)
    assert conversations[0][0]["content"].startswith("Is there anything I can eat for a breakfast")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "w1"}, r"Row 0 of 'conversations' has neither messages nor an instruction, only \['question'\]"),
        ({"messages": turns("w1")}, r"an assistant must answer. Its roles are \['user'\]"),
        ({"messages": turns("w1", "w2")[1:]}, "after the first one an assistant must answer"),
        ({"instruction": "w1"}, "every message needs a role, and a content or calls of tools"),
        (
            {"instruction": "w1", "input": 7, "output": "w2"},
            "Row 0 of 'conversations' has '7' in 'input', which is no s",
        ),
        ({"instruction": "w1", "output": 49}, "Row 0 of 'conversations' has '49' in 'output', which is no string"),
        ({"messages": json.dumps(turns("w1", "w2"))}, "Row 0 of 'conversations' has messages that are no list of obj"),
        ({"messages": ["w1", "w2"]}, "has messages that are no list of objects"),
        ({"messages": turns("w1", "w2"), "tools": "w3"}, "has tools that are no list of objects"),
        ({"messages": turns("w1", "w2"), "tools": ["w3"]}, "has tools that are no list of objects"),
        ({"messages": turns("w1", "w2"), "tools": "3"}, "has tools that are no list of objects"),
        ({"messages": turns("w1", "w2"), "tools": 3}, "has tools that are no list of objects"),
    ],
)
def test_rows_in_which_nobody_answers(row, message):
    with pytest.raises(ValueError, match=message):
        load_conversations([row, {"instruction": "w4", "output": "w5"}])
