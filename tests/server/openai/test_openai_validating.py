"""Which files can be tuned with, and what is said of those that can't."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_clients import chat_lines, jsonl, preference_lines

from tutelage_server.openai.validating import NOT_JSONL, NotJsonl, Unfit, check_jsonl, examine

HI = {"role": "user", "content": "hi"}
HO = {"role": "assistant", "content": "ho"}


def lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def test_every_line_must_be_an_object():
    assert check_jsonl(lines(b"\xef\xbb\xbf" + chat_lines(3) + b"\n \n")) == 3
    for number, bad in ((2, b"[1]\n"), (3, b"{]\n"), (4, b'"x"\n'), (1, b"\xff\xfe\n"), (1, b"[" * 100_000)):
        data = [*lines(chat_lines(number - 1)), bad]
        with pytest.raises(NotJsonl) as caught:
            check_jsonl(data)
        assert str(caught.value) == f"{NOT_JSONL} Line {number} is not."
    with pytest.raises(NotJsonl, match="has no line"):
        check_jsonl([])


@given(st.binary(max_size=200))
def test_no_bytes_are_too_odd_to_be_judged(data):
    with contextlib.suppress(NotJsonl):
        assert check_jsonl(lines(data)) > 0


def test_examples_are_counted_and_measured():
    found = examine(lines(chat_lines(12)), "supervised", "training_file")
    assert found.count == 12
    assert found.mean_tokens == pytest.approx(len(chat_lines(12).replace(b" ", b"")) / 48, rel=0.15)
    assert examine(lines(preference_lines(10)), "dpo", "training_file").count == 10


@pytest.mark.parametrize(
    ("data", "method", "code", "said"),
    [
        (chat_lines(3), "supervised", "invalid_n_examples", "Training file has 3 example(s), but must have at least 10 examples"),
        (
            jsonl([{"messages": [HI, HO]}] * 11 + [{"messages": [HI, {"content": "x"}]}]),
            "supervised",
            "invalid_training_file",
            "The job failed due to an invalid training file. Invalid file format. "
            "Example 12, message 2 Discriminator 'role' is missing in value",
        ),
        (chat_lines(12), "dpo", "invalid_training_file", "is in the fine-tune-chat format, but the specified fine-tuning job is not using 'supervised'"),
        (preference_lines(12), "supervised", "invalid_training_file", "(provided method=supervised)"),
        (jsonl([{"messages": []}]), "supervised", "invalid_training_file", "Field 'messages'"),
        (jsonl([{"prompt": "a", "completion": "b"}]), "supervised", "invalid_training_file", "Field 'messages'"),
        (jsonl([{"messages": [HI]}]), "supervised", "invalid_training_file", "from the assistant"),
        (jsonl([{"messages": [{"role": "user"}, HO]}]), "supervised", "invalid_training_file", "'content' is missing"),
        (jsonl([{"input": {}, "preferred_output": [HO], "non_preferred_output": [HO]}]), "dpo", "invalid_training_file", "input.messages"),
        (
            jsonl([{"input": {"messages": [HI]}, "preferred_output": [HI], "non_preferred_output": [HO]}]),
            "dpo",
            "invalid_training_file",
            "preferred_output: its last message must be the assistant's",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_openai_says_it(data, method, code, said):
    with pytest.raises(Unfit) as caught:
        examine(lines(data), method, "training_file")
    assert (caught.value.code, caught.value.param) == (code, "training_file")
    assert said in caught.value.message


def test_a_validation_file_may_be_short_and_is_named():
    assert examine(lines(chat_lines(1)), "supervised", "validation_file", 1).count == 1
    with pytest.raises(Unfit) as caught:
        examine([json.dumps([1]).encode()], "supervised", "validation_file", 1)
    assert (caught.value.code, caught.value.param) == ("invalid_validation_file", "validation_file")
