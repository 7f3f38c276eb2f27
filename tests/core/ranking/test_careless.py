"""Who looks careless: the rates of right and wrong verdicts over many simulated crews."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from tutelage.ranking.careless import look

Crew = dict[str, dict[str, list[float]]]


def crew(seed: int, *, questions: int = 60, answers: int = 4, people: int = 3, noise: float = 0.8) -> Crew:
    """Rankings of a crew that sees the same qualities through noise; `p0` orders at random."""
    generator = random.Random(seed)
    found: Crew = {}
    for number in range(questions):
        truth = [generator.gauss(0, 1) for _ in range(answers)]
        found[str(number)] = {}
        for person in range(people):
            seen = [quality + generator.gauss(0, noise) for quality in truth]
            scores = seen if person else [generator.random() for _ in range(answers)]
            found[str(number)][f"p{person}"] = [float(1 + sum(other > score for other in scores)) for score in scores]
    return found


def test_a_random_clicker_is_named_and_careful_people_are_not() -> None:
    verdicts = Counter[tuple[bool, str]]()
    for seed in range(20):
        rankings = crew(seed)
        for person in ("p0", "p1", "p2"):
            verdicts[person == "p0", look(person, rankings).verdict] += 1
    assert verdicts[True, "random"] >= 18
    assert verdicts[False, "random"] + verdicts[False, "reversed"] == 0
    assert verdicts[False, "careful"] >= 36


def test_nobody_is_named_before_there_is_enough_to_go_by() -> None:
    for seed in range(10):
        rankings = crew(seed, questions=4)
        assert {look(person, rankings).verdict for person in rankings["0"]} <= {"too few", "careful"}


def test_of_two_who_disagree_neither_is_named_but_known_answers_tell() -> None:
    rankings = crew(1, people=2, noise=0.3)
    assert look("p0", rankings).verdict == look("p1", rankings).verdict == "too few"
    generator = random.Random(2)
    known = {}
    for number in range(30):
        task = f"gold {number}"
        known[task] = [1.0, 2.0, 3.0, 4.0]
        rankings[task] = {"p0": [float(rank) for rank in generator.sample(range(1, 5), 4)], "p1": [1.0, 2.0, 4.0, 3.0]}
    assert look("p0", rankings, known).verdict == "random"
    assert look("p1", rankings, known).verdict == "careful"


def test_who_orders_worst_to_best_is_told_apart() -> None:
    rankings = crew(3, people=4)
    for given in rankings.values():
        given["p0"] = [5 - rank for rank in given["p1"]]
    assert look("p0", rankings).verdict == "reversed"


def test_the_p_value_is_that_of_all_orders() -> None:
    """Two questions of three answers: every one of the 36 equally probable pairs of orders, by hand."""
    others = {"1": [1.0, 2.0, 3.0], "2": [2.0, 1.0, 3.0]}
    mine = {"1": [1.0, 2.0, 3.0], "2": [1.0, 2.0, 3.0]}

    def alike(one: tuple[float, ...] | list[float], other: list[float]) -> int:
        pairs = itertools.combinations(range(3), 2)
        return sum(1 if (one[a] < one[b]) == (other[a] < other[b]) else -1 for a, b in pairs)

    reached = sum(alike(mine[task], others[task]) for task in mine)
    all_orders = list(itertools.product(itertools.permutations([1.0, 2.0, 3.0]), repeat=2))
    as_much = sum(alike(first, others["1"]) + alike(second, others["2"]) >= reached for first, second in all_orders)
    found = look("me", {task: {"me": mine[task], "you": others[task]} for task in mine})
    assert found.agreement == pytest.approx(reached / 6)
    assert found.p == pytest.approx(as_much / len(all_orders), abs=0.02)


def test_chance_gives_p_values_that_are_uniform() -> None:
    low = sum(look("p0", crew(seed, questions=20)).p < 0.2 for seed in range(60))  # type: ignore[operator]
    assert 4 <= low <= 21  # 12 are expected; outside, once in 300 times


def test_ties_of_all_answers_say_nothing() -> None:
    rankings = {str(number): {"a": [1.0, 1.0], "b": [1.0, 2.0]} for number in range(50)}
    assert look("a", rankings).questions == 0
    assert look("a", rankings).verdict == "too few"
