"""What a model is asked, and what is noticed in what it writes."""

from __future__ import annotations

import pytest

from tutelage.constitution import Principle
from tutelage.errors import TutelageError
from tutelage_plugins.constitutions import asking, revising

KIND = Principle(
    id="kind", text="Be kind.", critique="What is unkind?", revision="Be kind, please.", preference="Which?"
)


def test_requests_hold_all_that_they_are_about_and_the_examples_before_them():
    template = revising.load(revising.DEFAULT)
    asked = template.asking_revision(
        "What is {request}?", "Nothing", "It is rude", KIND, skip=len(template.examples) - 1
    )
    assert [turn["role"] for turn in asked] == ["user", "assistant", "user"]
    assert asked[1]["content"] == template.examples[-1].revision
    for said in ("What is {request}?", "Nothing", "It is rude", "Be kind, please."):
        assert said in asked[-1]["content"]
    whole = template.asking_critique("Why?", "Because", KIND)
    assert len(whole) == 2 * len(template.examples) + 1
    assert whole[1]["content"] == template.examples[0].critique


def test_templates_without_their_places_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("critique: '{prompt} {request}'\nrevision: '{prompt} {answer} {request}'\n")
    with pytest.raises(TutelageError, match=r"critique lacks \{answer\}"):
        revising.load(path)
    path.write_text("question: '{prompt} {first} {second}'\nanswer: It is\n")
    with pytest.raises(TutelageError, match=r"question lacks \{request\}"):
        asking.load(path)


def test_words_are_in_the_digest():
    template = revising.load(revising.DEFAULT)
    other = revising.Template(critique=template.critique + "!", revision=template.revision, examples=template.examples)
    assert template.digest() == revising.load(revising.DEFAULT).digest() != other.digest()


SHOWN = ["Rewrite your answer so that nobody is hurt by following it.", "No, thank you."]


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("Rewrite your answer so that nobody is hurt by following it.", True),
        ("Sure! rewrite your answer so that NOBODY is hurt, by following advice", True),
        ("Rewrite your answer so that nobody", False),  # seven words of it
        ("no thank you", True),  # the whole of a short one
        ("No.", False),
        ("I would rather not help with that, since somebody could be hurt by following it.", False),
        ("", False),
    ],
)
def test_what_only_gives_back_what_was_shown_is_noticed(text, copied):
    assert revising.copies(text, SHOWN) is copied


def test_a_prompt_of_several_turns_becomes_a_transcript():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    assert revising.transcript(turns) == "User: Hi\n\nAssistant: Hello\n\nUser: Why?"
    assert revising.transcript([turns[0], turns[3]]) == "Why?"
