"""Typed orders, and several rankings as one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.ranking.consensus import consensus, rows_of
from tutelage.ranking.judgements import Judgement, Kind
from tutelage.ranking.orders import parse_order, tidied
from tutelage.ranking.simulated import ranks_of
from tutelage.ranking.tasks import Task

some_rankings = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(1, k).map(float), min_size=k, max_size=k), min_size=1, max_size=5)
)


@pytest.mark.parametrize(
    ("typed", "ranks"),
    [
        ("b a=c d", [2, 1, 2, 3]),
        ("a b c d", [1, 2, 3, 4]),
        ("A > b, c  >  D", [1, 2, 3, 4]),
        ("a = b=c =d", [1, 1, 1, 1]),
        ("d c=b a", [3, 2, 2, 1]),
    ],
)
def test_an_order_as_people_type_it(typed: str, ranks: list[int]) -> None:
    assert parse_order(typed, 4) == ranks


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        ("a b c", "d is missing"),
        ("a", "b, c, d are missing"),
        ("a b c d a", "a is there twice"),
        ("a b c e", "'e' is no answer"),
        ("abcd", "'abcd' is no answer: the answers are a, b, c, d; part them with spaces"),
        ("a = = b c d", "an = stands alone"),
        ("=", "an = stands alone"),
        ("ä b c d", "'ä' is no answer"),
        ("", "a, b, c, d are missing"),
    ],
)
def test_what_is_no_order_is_told_in_a_sentence(typed: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.replace("(", r"\(")):
        parse_order(typed, 4)


@settings(deadline=None)
@given(st.integers(1, 26).flatmap(lambda k: st.lists(st.integers(1, k), min_size=k, max_size=k)))
def test_an_order_is_read_as_it_was_written(scores: list[int]) -> None:
    ranks = tidied([float(score) for score in scores])
    letters = "abcdefghijklmnopqrstuvwxyz"[: len(ranks)]
    groups = [
        "=".join(letter for letter, rank in zip(letters, ranks, strict=True) if rank == place)
        for place in sorted(set(ranks))
    ]
    assert parse_order(" ".join(groups), len(ranks)) == ranks


@settings(deadline=None)
@given(some_rankings)
def test_people_who_agree_are_their_own_consensus(rankings: list[list[float]]) -> None:
    assert consensus([rankings[0]] * 3) == tidied(rankings[0])


@settings(deadline=None)
@given(some_rankings, st.randoms())
def test_neither_the_order_of_people_nor_of_answers_matters(
    rankings: list[list[float]], generator: random.Random
) -> None:
    people, order = list(rankings), list(range(len(rankings[0])))
    generator.shuffle(people)
    generator.shuffle(order)
    assert consensus(people) == consensus(rankings)
    assert consensus([[ranks[at] for at in order] for ranks in rankings]) == [consensus(rankings)[at] for at in order]


def test_the_mean_of_places_decides_and_ties_stay() -> None:
    # places 1 2 3, 1 2 3 and 2.5 2.5 1: sums 4.5, 6.5, 7
    assert consensus([[1, 2, 3], [1, 2, 3], [2, 2, 1]]) == [1, 2, 3]
    # opposite orders cancel; the middle stays in the middle, so all are tied
    assert consensus([[1, 2, 3], [3, 2, 1]]) == [1, 1, 1]
    # a person who gives large numbers has no more say than another
    assert consensus([[1, 2], [1, 2], [900, 1]]) == [1, 2]


def said(**kinds: tuple[Kind, list[float]]) -> dict[str, Judgement]:
    return {
        person: Judgement(kind=kind, person=person, at="", task="t", ranks=ranks)
        for person, (kind, ranks) in kinds.items()
    }


TASK = Task(id="t", prompt="p", answers=["x", "y"], made_by=["m", "n"])


def test_a_row_says_what_was_agreed_by_how_many() -> None:
    given = {"t": said(a=("ranking", [1, 2]), b=("ranking", [1, 2]), c=("ranking", [2, 1]), d=("skip", []))}
    rows, left_out = rows_of([TASK], given, "people")
    assert rows == [
        {
            "prompt": "p",
            "answers": ["x", "y"],
            "ranks": [1, 2],
            "agreement": pytest.approx(1 / 3),
            "people": 3,
            "by": "people",
            "made_by": ["m", "n"],
        }
    ]
    assert not left_out
    assert rows_of([TASK], given, "people", exclude={"a", "b"})[0][0]["ranks"] == [2, 1]
    assert rows_of([TASK], given, "people", exclude={"a", "b"})[0][0]["agreement"] is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "not judged"),
        (said(a=("skip", [])), "skipped"),
        (said(a=("bad", []), b=("bad", []), c=("ranking", [1, 2])), "all bad"),
        (said(a=("ranking", [1, 2]), b=("ranking", [2, 1])), "all tied"),
        (said(a=("ranking", [1, 1])), "all tied"),
    ],
)
def test_what_can_not_be_learnt_from_is_left_out_with_its_reason(given: dict[str, Judgement], reason: str) -> None:
    rows, left_out = rows_of([TASK], {"t": given}, "people")
    assert rows == []
    assert left_out == {reason: 1}


def test_who_is_outvoted_about_bad_answers_does_not_count() -> None:
    rows, _ = rows_of([TASK], {"t": said(a=("bad", []), b=("ranking", [2, 1]))}, "people")
    assert rows[0]["ranks"] == [2, 1]


def test_known_answers_make_no_rows() -> None:
    gold = Task(id="g", prompt="p", answers=["x", "y"], gold=[1, 2])
    assert rows_of([gold], {"g": said(a=("ranking", [1, 2]))}, "people") == ([], {})


def test_scores_become_ranks_with_ties_within_the_margin() -> None:
    assert ranks_of([0.1, 3.0, 2.0], 0) == [3, 1, 2]
    assert ranks_of([0.1, 3.0, 2.5], 0.5) == [2, 1, 1]
    assert ranks_of([1.0, 1.0], 0) == [1, 1]
