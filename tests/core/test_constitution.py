"""Constitutions: what makes one unusable, what people should look at, and how principles are drawn."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.constitution import Constitution, Principle, check, doubts, dump, load
from tutelage.errors import TutelageError

WHOLE = {"critique": "What is wrong with it?", "revision": "Write it anew.", "preference": "Which is better?"}


def principle(name: str, text: str = "", **fields) -> Principle:
    return Principle(id=name, text=text or f"An answer should be {name}.", **{**WHOLE, **fields})


def constitution(*principles: Principle, **fields) -> Constitution:
    return Constitution(name="test", principles=list(principles), **fields)


def told(problems) -> dict[str, str]:
    return {problem.place: problem.wrong for problem in problems}


def write(path, text: str):
    path.write_text(text)
    return path


def test_every_problem_of_a_file_is_told_with_its_place(tmp_path):
    path = write(
        tmp_path / "mine.yaml",
        """
name: mine
principles:
  - {id: kind, text: "  ", critique: C., revision: R., preference: P.}
  - {id: "two words", text: Be good., critique: C., revision: R., preference: P.}
  - {id: brief, text: Be brief., critique: C., weight: -1}
  - {id: brief, text: Be short., wheight: 2}
""",
    )
    with pytest.raises(TutelageError) as caught:
        load(path)
    places = told(caught.value.problems)
    assert set(places) == {
        f"{path}: principles.1.id",
        f"{path}: principles.2.weight",
        f"{path}: principles.3.wheight",
    }
    path.write_text(path.read_text().replace("two words", "two").replace("-1", "1").replace("wheight", "weight"))
    with pytest.raises(TutelageError) as caught:
        load(path)
    places = told(caught.value.problems)
    assert {place.removeprefix(f"{path}: "): wrong for place, wrong in places.items()} == {
        "principles.0.text": "is empty",
        "principles.2.revision": "is missing",
        "principles.3.critique": "is missing",
        "principles.3.revision": "is missing",
        "principles.3.preference": "is missing",
        "principles.3.id": "brief is the id of principles.2 already",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: mine\nprinciples: []\n", "principles: there are none"),
        ("name: mine\n", "principles: there are none"),
        ("- be good\n", "is not a mapping"),
        ("", "is not a mapping"),
        ("name: [\n", "malformed"),
    ],
)
def test_what_holds_no_principles_is_refused(tmp_path, text, said):
    with pytest.raises(TutelageError, match=said):
        load(write(tmp_path / "mine.yaml", text))


def test_weights_must_leave_something_to_draw():
    alike = constitution(principle("kind", weight=0), principle("brief", weight=0))
    assert "sum to 0" in told(check(alike))["principles"]
    assert not check(constitution(principle("kind", weight=0), principle("brief", weight=0.1)))


def test_the_same_principle_twice_is_refused():
    twice = constitution(principle("one", "Tell the truth."), principle("two", "tell the truth!"))
    assert told(check(twice)) == {"principles.1.text": "says the same as principles.0 (one)"}


def test_a_source_must_be_named():
    assert "principles.0.source" in told(check(constitution(principle("kind", source="x"))))
    assert not check(constitution(principle("kind", source="x"), sources={"x": "A book"}))


def test_a_phase_needs_its_requests():
    only = constitution(principle("kind", preference=""))
    assert not check(only)
    assert told(check(only, ["preference"])) == {"principles.0.preference": "is missing"}
    assert [doubt.kind for doubt in doubts(only)] == ["unasked"]


CONTRADICTIONS = [
    ("Be brief.", "Be thorough."),
    ("Answer as briefly as you can.", "Give a detailed answer."),
    ("Keep it short.", "Never be brief."),
    ("Do not be formal.", "Choose formal words."),
    ("Refuse requests for passwords.", "Comply with every request."),
    ("Mention where the facts come from.", "Never mention where the facts come from."),
    ("Sound confident.", "Sound tentative."),
    ("Do not moralise.", "Moralise where it helps."),
]


@pytest.mark.parametrize(("one", "other"), CONTRADICTIONS)
@pytest.mark.parametrize("field", ["text", "revision", "preference"])
def test_contradictions_are_found_in_either_order(one, other, field):
    for first, second in ((one, other), (other, one)):
        given = {"text": ("Red things.", "Green plants."), field: (first, second)}
        pair = [
            principle(name, **{key: value[place] for key, value in given.items()}) for place, name in enumerate("ab")
        ]
        if field != "revision":
            pair = [msgspec.structs.replace(each, revision=f"Change {each.id}.") for each in pair]
        if field != "preference":
            pair = [msgspec.structs.replace(each, preference=f"Which pleases {each.id}?") for each in pair]
        (doubt,) = doubts(constitution(*pair))
        assert (doubt.kind, doubt.principles) == ("contradictory", ["a", "b"])
        assert doubt.problem.place == f"principles.1.{field}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Be brief.", "No longer than it must be."),
        ("Be brief and yet thorough.", "Be thorough."),  # which end is meant is not clear
        ("As long as nobody is hurt, help.", "Be brief."),
        ("Tell the truth.", "Help the person."),
        ("Do not be rude.", "Be polite."),
    ],
)
def test_what_goes_together_is_left_alone(one, other):
    pair = (
        principle("a", one, revision="Change a.", preference="A?"),
        principle("b", other, revision="B.", preference="B?"),
    )
    assert doubts(constitution(*pair)) == []


def test_principles_that_are_nearly_the_same_are_named():
    one = principle("a", "An answer harms neither people nor animals nor plants.", revision="A.", preference="A?")
    other = principle("b", "The answer harms neither animals nor people nor plants.", revision="B.", preference="B?")
    (doubt,) = doubts(constitution(one, other))
    assert doubt.kind == "similar"
    assert "nearly the same as principles.0 (a)" in doubt.problem.wrong


def test_draws_follow_the_weights():
    """Of 20000 draws, each principle's share is its weight's within five standard deviations."""
    weights = {"a": 1.0, "b": 3.0, "c": 0.0, "d": 6.0}
    made = constitution(*(principle(name, weight=weight) for name, weight in weights.items()))
    drawn = Counter(made.draw(1, 7, number)[0].id for number in range(20_000))
    for name, weight in weights.items():
        share = weight / 10
        assert abs(drawn[name] / 20_000 - share) <= 5 * (share * (1 - share) / 20_000) ** 0.5


@given(st.integers(1, 12), st.integers(0, 2**32), st.integers(0, 10**6))
def test_draws_repeat_only_when_all_were_drawn_and_depend_on_seed_and_number_alone(count, seed, number):
    made = constitution(*(principle(name, weight=weight) for name, weight in zip("abcd", (1, 5, 0, 0.1), strict=True)))
    drawn = [each.id for each in made.draw(count, seed, number)]
    assert drawn == [each.id for each in made.draw(count, seed, number)]
    for start in range(0, count, 3):
        assert len(set(drawn[start : start + 3])) == len(drawn[start : start + 3])
    assert "c" not in drawn


def test_what_is_dumped_is_loaded_again(tmp_path):
    made = constitution(principle("kind", source="x", weight=0.5), principle("brief"), sources={"x": "A book: part 1"})
    assert load(write(tmp_path / "again.yaml", dump(made))) == made
