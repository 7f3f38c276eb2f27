"""What the built-in formats make of rows, and what they refuse."""

from __future__ import annotations

import pytest

from tutelage.data.reading import detect
from tutelage.errors import TutelageError
from tutelage.formats import Continuation, Conversation, Text
from tutelage.plugins import Host
from tutelage_plugins.formats import FORMATS


@pytest.fixture(scope="module")
def host() -> Host:
    class Module:
        @staticmethod
        def register_formats(register):
            for kind in FORMATS:
                register(kind)

    made = Host()
    assert not made.register(Module, "formats").error
    return made


def turn(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


HI = [turn("user", "Hi"), turn("assistant", "Hello")]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}

GOOD = [
    ("messages", {"messages": HI}, Conversation(HI)),
    ("messages", {"messages": [turn("system", "S"), *HI], "id": 7}, Conversation([turn("system", "S"), *HI])),
    # Parquet fills fields that a turn lacks with nulls.
    ("messages", {"messages": [{**HI[0], "tool_calls": None, "name": None}, HI[1]], "tools": None}, Conversation(HI)),
    (
        "messages",
        {"messages": [turn("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), HI[1]]},
        Conversation(HI),
    ),
    (
        "messages",
        {
            "messages": [
                HI[0],
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                turn("tool", "noon"),
                HI[1],
            ],
            "tools": TOOLS,
        },
        Conversation([HI[0], turn("assistant", "", tool_calls=[CALL]), turn("tool", "noon"), HI[1]], TOOLS),
    ),
    (
        "messages",
        {
            "messages": [
                HI[0],
                turn(
                    "assistant",
                    "",
                    tool_calls=[{"id": "1", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}],
                ),
            ],
            "tools": '[{"type": "function", "function": {"name": "now", "parameters": {}}}]',
        },
        Conversation(
            [HI[0], turn("assistant", "", tool_calls=[{"type": "function", "id": "1", "function": CALL["function"]}])],
            TOOLS,
        ),
    ),
    (
        "messages",
        {"messages": [HI[0], {**HI[1], "weight": 0}, *HI]},
        Conversation([HI[0], {**HI[1], "weight": 0}, *HI]),
    ),
    ("prompt_completion", {"prompt": "Hi", "completion": " Hello"}, Continuation("Hi", " Hello")),
    ("prompt_completion", {"prompt": HI[:1], "completion": HI[1:]}, Conversation(HI)),
    (
        "prompt_completion",
        {"prompt": [*HI, HI[0]], "completion": HI[1:]},
        Conversation([HI[0], {**HI[1], "weight": 0}, *HI]),
    ),
    ("alpaca", {"instruction": "Add", "input": "1 2", "output": "3"}, Continuation("Add\n\n1 2", "3", gap="\n\n")),
    ("alpaca", {"instruction": "Add 1 2", "input": "", "output": "3"}, Continuation("Add 1 2", "3", gap="\n\n")),
    (
        "alpaca",
        {"instruction": "Add 1 2", "input": None, "output": "3", "history": []},
        Continuation("Add 1 2", "3", gap="\n\n"),
    ),
    (
        "alpaca",
        {"instruction": "Hi", "output": "Hello", "system": "S", "history": [["One", "Two"]]},
        Conversation([turn("system", "S"), turn("user", "One"), turn("assistant", "Two"), *HI]),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        Conversation(HI),
    ),
    ("sharegpt", {"conversations": HI}, Conversation(HI)),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "S"},
        Conversation([turn("system", "S"), *HI]),
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "now", "arguments": {"zone": "UTC"}}'},
                {"from": "observation", "value": "noon"},
                {"from": "gpt", "value": "Hello"},
            ],
            "tools": TOOLS,
        },
        Conversation([HI[0], turn("assistant", "", tool_calls=[CALL]), turn("tool", "noon"), HI[1]], TOOLS),
    ),
    ("text", {"text": "Once upon a time", "url": "x"}, Text("Once upon a time")),
]


@pytest.mark.parametrize(("name", "row", "record"), GOOD)
def test_a_row_is_recognised_and_becomes_its_record(host, name, row, record):
    found = detect(row, host, "x line 1")
    assert found.name == name
    converted = found.convert(row)
    assert type(converted) is type(record)
    if isinstance(record, Conversation):
        assert _plain(converted.messages) == _plain(record.messages)
        assert converted.tools == record.tools
    else:
        assert converted == record


def _plain(messages: list[dict]) -> list[list]:
    return [sorted(message.items(), key=lambda item: item[0]) for message in messages]


BAD = [
    ("messages", {"messages": "Hi"}, "messages is text, not a list"),
    ("messages", {"other": 1}, "messages is missing"),
    ("messages", {"messages": []}, "messages is empty"),
    ("messages", {"messages": HI[:1]}, "no assistant turn"),
    ("messages", {"messages": ["Hi", HI[1]]}, r"messages\[0\] is text, not an object"),
    ("messages", {"messages": [turn("human", "Hi"), HI[1]]}, r"messages\[0\].role is 'human'; known roles are system"),
    ("messages", {"messages": [{"role": "user"}, HI[1]]}, r"messages\[0\].content is missing"),
    ("messages", {"messages": [turn("user", 7), HI[1]]}, r"messages\[0\].content is a number"),
    ("messages", {"messages": [turn("user", [{"type": "image"}]), HI[1]]}, "only text can be learnt"),
    ("messages", {"messages": [HI[0], turn("assistant", " ")]}, r"messages\[1\].content is empty"),
    ("messages", {"messages": [HI[0], turn("assistant", "", tool_calls="now")]}, r"messages\[1\].tool_calls is text"),
    ("messages", {"messages": [HI[0], turn("assistant", "", tool_calls=[{}])]}, "names no function"),
    (
        "messages",
        {"messages": [HI[0], turn("assistant", "", tool_calls=[{"name": "now", "arguments": "{"}])]},
        "arguments is text, but not JSON",
    ),
    (
        "messages",
        {"messages": [HI[0], turn("assistant", "", tool_calls=[{"name": "now", "arguments": "[]x"}])]},
        "arguments is text, but not JSON",
    ),
    ("messages", {"messages": [HI[0], turn("assistant", "Hello", weight=0.5)]}, "weight is 0.5"),
    ("messages", {"messages": HI, "tools": "now"}, "tools is text, but not JSON"),
    ("messages", {"messages": HI, "tools": ["now"]}, "tools must be a list of objects"),
    ("prompt_completion", {"prompt": "Hi", "completion": None}, "completion is missing"),
    ("prompt_completion", {"prompt": "Hi", "completion": ""}, "completion is empty"),
    ("prompt_completion", {"prompt": "Hi", "completion": HI[1:]}, "prompt is text and completion is a list"),
    ("alpaca", {"instruction": "", "output": "3"}, "instruction is empty"),
    ("alpaca", {"instruction": "Add", "output": " "}, "output is empty"),
    ("alpaca", {"instruction": "Add", "input": 3, "output": "3"}, "input is a number, not text"),
    ("alpaca", {"instruction": "Add", "output": "3", "history": [["one"]]}, "history is not a list of"),
    ("alpaca", {"instruction": "Add", "output": "3", "history": [["one", 2]]}, r"history\[0\] is not a question"),
    ("sharegpt", {"conversations": 1}, "conversations is a number"),
    ("sharegpt", {"conversations": ["Hi"]}, r"conversations\[0\] is text"),
    ("sharegpt", {"conversations": [{"from": "Hal", "value": "Hi"}]}, r"conversations\[0\].from is 'Hal'; known are"),
    ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, r"conversations\[0\].value is missing"),
    ("sharegpt", {"conversations": [{"from": "function_call", "value": "now"}]}, "is a function call, but not JSON"),
    ("sharegpt", {"conversations": [turn("system", "S"), *HI], "system": "S"}, "a system column and a system turn"),
    ("text", {"text": 7}, "text is a number, not text"),
    ("text", {"text": " \n"}, "text is empty"),
]


@pytest.mark.parametrize(("name", "row", "sentence"), BAD)
def test_a_bad_row_is_refused_with_a_sentence_that_names_the_field(host, name, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        host.classes("format")[name]().convert(row)


def test_rows_that_no_format_wants_or_that_two_do_are_told_of(host):
    with pytest.raises(TutelageError, match=r"columns \(question, reply\) fit no data format"):
        detect({"question": "a", "reply": "b"}, host, "x line 1")
    with pytest.raises(TutelageError, match=r"fit the formats alpaca and text; say which by data\.format"):
        detect({"instruction": "a", "output": "b", "text": "c"}, host, "x line 1")


def test_every_format_says_what_it_is(host):
    for kind in FORMATS:
        assert kind.summary()
        assert kind.columns
