"""Rows of preferences, rankings and prompts, and what is wrong with those that are none."""

from __future__ import annotations

import pytest

from tutelage.data.reading import detect
from tutelage.plugins import host as installed
from tutelage_plugins.formats.preference import Preference
from tutelage_plugins.formats.prompts import Prompts
from tutelage_plugins.formats.ranking import Rankings

ASKED = [{"role": "user", "content": "hi"}]


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"chosen": [*ASKED, *turn("b")], "rejected": [*ASKED, *turn("c")]}, "preference"),
        (
            {"input": {"messages": ASKED}, "preferred_output": turn("b"), "non_preferred_output": turn("c")},
            "preference",
        ),
        ({"prompt": "a", "answers": ["b", "c"], "ranks": [1, 2]}, "ranking"),
        ({"prompt": "a", "answers": ["b", "c"], "made_by": []}, "prompts"),
        ({"prompt": ASKED}, "prompts"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
    ],
)
def test_each_row_has_one_format(row, name):
    assert detect(row, installed(), "x line 1").name == name


def test_a_pair_may_be_text_or_messages_or_whole_conversations():
    plain = Preference().convert({"prompt": "hi", "chosen": "b", "rejected": "c", "probability": 0.7, "margin": 2})
    assert (plain.prompt, plain.answers, plain.ranks) == ("hi", ["b", "c"], [1.0, 2.0])
    assert (plain.probability, plain.margin) == (0.7, 2.0)
    messages = Preference().convert({"prompt": ASKED, "chosen": turn("b"), "rejected": turn("c")})
    whole = Preference().convert({"chosen": [*ASKED, *turn("b")], "rejected": [*ASKED, *turn("c")]})
    assert messages == whole
    assert whole.prompt == ASKED
    sides = {"preferred_output": turn("b"), "non_preferred_output": turn("c")}
    assert Preference().convert({"input": {"messages": ASKED, "tools": []}, **sides}) == whole


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is"),
        ({"prompt": [*ASKED, *turn("b")], "chosen": "c", "rejected": "d"}, "ends with the assistant"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "probability": 1.5}, "between 0 and 1"),
        ({"input": ASKED, "preferred_output": turn("b"), "non_preferred_output": turn("c")}, "input is"),
        ({"input": {"messages": ASKED}, "preferred_output": turn("b"), "non_preferred_output": turn("b")}, "same"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "finite"),
        (
            {"chosen": [*ASKED, *turn("b")], "rejected": [{"role": "user", "content": "other"}, *turn("c")]},
            "turns before",
        ),
    ],
)
def test_what_is_no_pair_is_told_in_a_sentence(row, wrong):
    with pytest.raises(ValueError, match=wrong):
        Preference().convert(row)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": "a", "answers": ["b"], "ranks": [1]}, "two or more"),
        ({"prompt": "a", "answers": ["b", "c"], "ranks": [1]}, "each answer needs a rank"),
        ({"prompt": "a", "answers": ["b", "c"], "ranks": [1, None]}, "ranks\\[1\\] is missing"),
        ({"prompt": "a", "answers": ["b", "c"], "ranks": [1, 1]}, "nothing to prefer"),
        ({"prompt": "a", "answers": ["b", "b", "c"], "ranks": [1, 2, 3]}, "there twice"),
        ({"prompt": "a", "answers": ["b", ""], "ranks": [1, 2]}, "answers\\[1\\] is empty"),
        ({"prompt": "a", "answers": ["b", "c"], "ranks": [1, float("inf")]}, "finite"),
        ({"prompt": "a", "answers": "b", "ranks": [1, 2]}, "not a list"),
    ],
)
def test_what_is_no_ranking_is_told_in_a_sentence(row, wrong):
    with pytest.raises(ValueError, match=wrong):
        Rankings().convert(row)


def test_a_prompt_keeps_the_rows_other_columns():
    made = Prompts().convert({"prompt": "a", "answer": 7, "level": 2, "fields": {"level": 1, "topic": "sums"}})
    assert (made.answer, made.fields) == ("7", {"level": 2, "topic": "sums"})
