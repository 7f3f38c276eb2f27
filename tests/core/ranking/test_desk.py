"""Who gets which questions in which order, and what becomes of judgements."""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import TutelageError
from tutelage.ranking.desk import Desk
from tutelage.ranking.figures import figures
from tutelage.ranking.simulated import simulate
from tutelage.ranking.tasks import Plan, Task, assignments, make_tasks, shown_order, task_id


def tasks(count: int, answers: int = 3, gold: bool = False) -> list[Task]:
    made = []
    for number in range(count):
        texts = [f"answer {letter} of {number}" for letter in "pqrstuvw"[:answers]]
        prompt = f"{'known' if gold else 'asked'} {number}"
        ranks = [float(rank) for rank in range(1, answers + 1)] if gold else None
        made.append(
            Task(id=task_id(prompt, texts), prompt=prompt, answers=texts, made_by=["hidden"] * answers, gold=ranks)
        )
    return made


def plan(count: int = 6, gold: int = 0, **settings: Any) -> Plan:
    people = settings.get("people", [])
    return Plan(tasks=[*tasks(count), *tasks(gold, gold=True)], **{"seats": len(people) or 1, **settings})


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_everybody_gets_as_many_and_every_question_as_many_people(
    count: int, seats: int, overlap: int, seed: int
) -> None:
    overlap = min(overlap, seats)
    lots = assignments(plan(count, seats=seats, overlap=overlap, seed=seed))
    sizes = [len(lot) for lot in lots]
    assert max(sizes) - min(sizes) <= 1
    assert Counter(task.id for lot in lots for task in lot) == Counter({task.id: overlap for task in tasks(count)})
    assert all(len({task.id for task in lot}) == len(lot) for lot in lots)


def test_everybody_shares_questions_with_everybody() -> None:
    lots = assignments(plan(60, seats=4, overlap=2))
    together = [len({task.id for task in one} & {task.id for task in other}) for one, other in combinations(lots, 2)]
    assert min(together) >= 3  # of 10 that are expected; fixed pairs would give 0


def test_known_answers_are_mixed_in_for_everybody() -> None:
    lots = assignments(plan(36, gold=10, seats=2, overlap=2, gold_share=0.1))
    for lot in lots:
        places = [at for at, task in enumerate(lot) if task.gold is not None]
        assert len(places) == 4
        assert places != list(range(36, 40))


def test_the_order_shown_is_anybodys_own_and_stays() -> None:
    made = plan(100, seats=2, seed=5)
    first = Counter(shown_order(made, "ann", task)[0] for task in made.tasks)
    assert min(first.values()) > 20  # every answer stands first about a third of the time
    other = [shown_order(made, "ann", task) == shown_order(made, "bob", task) for task in made.tasks]
    assert 5 <= sum(other) <= 35  # one in six
    assert [shown_order(made, "ann", task) for task in made.tasks] == [
        shown_order(made, "ann", task) for task in made.tasks
    ]


def test_equal_answers_are_shown_once_and_equal_questions_asked_once() -> None:
    notes: list[str] = []
    rows = [
        ("1", "p", ["x", "y", "x"], ["m", "n", "o"]),
        ("2", "p", ["x", "y"], ["m", "n"]),
        ("3", "q", ["x", "x"], None),
    ]
    (task,) = make_tasks(rows, notes)
    assert (task.answers, task.made_by) == (["x", "y"], ["m", "n"])
    assert [note.split(" ")[0] for note in notes] == ["1", "1"]


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        (None, "has no list of answers"),
        (["x", 3], "answer 2 is no text"),
        (["x", " "], "answer 2 is empty"),
        (list("abcdefghijklmnopqrstuvwxyz0"), "has 27 answers"),
        ([], "has no answers"),
    ],
)
def test_rows_that_can_not_be_ranked_are_told(answers: Any, wrong: str) -> None:
    with pytest.raises(TutelageError, match=f"file line 4: {wrong}"):
        make_tasks([("file line 4", "p", answers, None)], [])


def test_judging_goes_through_the_questions(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(4, people=["ann", "bob"], overlap=1))
    asked = desk.pending("ann")
    assert len(asked) == 2
    desk.judge("ann", asked[0], "ranking", [1, 2, 3], 2.5)
    desk.judge("ann", asked[1], "skip")
    assert desk.pending("ann") == []
    assert [task.id for task in desk.pending("ann", more=True)] == [
        task.id for task in desk.plan.tasks if task in desk.pending("bob")
    ]
    assert desk.given() == 2
    entry = desk.said()[asked[0].id]["ann"]
    assert (entry.ranks, entry.seconds, entry.shown) == ([1, 2, 3], 2.5, shown_order(desk.plan, "ann", asked[0]))


def test_undo_takes_back_one_answer_after_another_by_further_lines(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(3))
    first, second, _ = desk.pending("ann") or desk.plan.tasks
    desk.judge("ann", first, "ranking", [1, 2, 3])
    desk.judge("ann", second, "bad")
    before = desk.log.path.read_bytes()
    assert desk.undo("ann") == second
    assert desk.undo("ann") == first
    assert desk.undo("ann") is None
    assert desk.log.path.read_bytes().startswith(before)
    desk.judge("ann", first, "ranking", [3, 2, 1])
    assert desk.said()[first.id]["ann"].ranks == [3, 2, 1]
    assert desk.undo("bob") is None


def test_the_same_answer_twice_counts_once_and_another_is_refused(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(2))
    task = desk.plan.tasks[0]
    desk.judge("ann", task, "ranking", [1, 2, 3])
    desk.judge("ann", task, "ranking", [1, 2, 3])
    assert len([entry for entry in desk.entries() if entry.kind == "ranking"]) == 1
    with pytest.raises(TutelageError, match="answered this question otherwise"):
        desk.judge("ann", task, "ranking", [2, 1, 3])
    assert desk.said()[task.id]["ann"].ranks == [1, 2, 3]


def test_only_those_who_are_asked_may_rank(tmp_path: Path) -> None:
    named = Desk.set_up(tmp_path / "named", plan(people=["ann", "bob"]))
    with pytest.raises(TutelageError, match="'bib' is not asked to rank here; did you mean bob"):
        named.join("bib")
    seats = Desk.set_up(tmp_path / "seats", plan(seats=2))
    seats.join("ann")
    seats.join("ann")
    for name, wrong in (("Ann", "differ only in capitals"), ("../x", "can't be a name"), ("", "can't be a name")):
        with pytest.raises(TutelageError, match=wrong):
            seats.join(name)
    seats.join("bob")
    with pytest.raises(TutelageError, match="'cat' has no seat: 2 may rank, and ann, bob came first"):
        seats.judge("cat", seats.plan.tasks[0], "bad")
    assert seats.people() == ["ann", "bob"]


def test_seats_are_given_once_to_people_who_come_at_once(tmp_path: Path) -> None:
    Desk.set_up(tmp_path, plan(40, seats=5, overlap=2))

    def come(number: int) -> list[str]:
        desk = Desk.open(tmp_path)
        desk.join(f"p{number}")
        return [task.id for task in desk.assigned(f"p{number}")]

    with ThreadPoolExecutor(5) as pool:
        lots = list(pool.map(come, range(5)))
    assert Counter(task for lot in lots for task in lot) == Counter({task.id: 2 for task in tasks(40)})


def test_a_new_plan_keeps_what_was_said_of_questions_that_stay(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(3))
    for task in desk.plan.tasks:
        desk.judge("ann", task, "ranking", [1, 2, 3])
    again = Desk.set_up(tmp_path, Plan(tasks=[*desk.plan.tasks[:2], *tasks(1, answers=4)], seats=1))
    assert set(again.said()) == {task.id for task in desk.plan.tasks[:2]}
    assert again.given() == 2


def test_what_people_are_shown_tells_nothing_of_models_or_of_known_answers(tmp_path: Path) -> None:
    from tutelage.ranking.exchange import export
    from tutelage.ranking.shapes import KINDS

    desk = Desk.set_up(tmp_path / "desk", plan(9, gold=3, people=["ann", "bob"], gold_share=0.4))
    for kind in KINDS:
        for person in ("", "ann"):
            export(desk, tmp_path / "out.jsonl", kind, person)
            text = (tmp_path / "out.jsonl").read_text()
            assert "hidden" not in text
            assert "gold" not in text
            assert "made_by" not in text
            known = [json.loads(line) for line in text.splitlines()]
            places = [at for at, row in enumerate(known) if "known" in json.dumps(row)]
            assert places
            assert places != list(range(len(known) - len(places), len(known)))


def test_a_damaged_line_is_named_and_a_torn_one_was_never_said(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(3))
    first, second, third = desk.plan.tasks
    desk.judge("ann", first, "bad")
    desk.judge("ann", second, "bad")
    whole = desk.log.path.read_bytes()
    desk.log.path.write_bytes(whole[:-9])
    assert set(desk.said()) == {first.id}
    desk.judge("ann", third, "skip")
    assert set(desk.said()) == {first.id, third.id}
    lines = desk.log.path.read_bytes().splitlines()
    desk.log.path.write_bytes(b"\n".join([lines[0], b"\xff{", *lines[1:]]) + b"\n")
    with pytest.raises(TutelageError, match=r"judgements.jsonl line 2: is no judgement"):
        desk.said()
    (tmp_path / "tasks.json").write_text("{")
    with pytest.raises(TutelageError, match="is damaged"):
        Desk.open(tmp_path)


def test_figures_of_a_crew(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(30, gold=6, people=["ann", "bob", "cat"], overlap=3, gold_share=0.15))
    generator = random.Random(0)
    for person in ("ann", "bob", "cat"):
        for task in desk.pending(person):
            ranks = generator.sample([1.0, 2.0, 3.0], 3) if person == "cat" else [1.0, 2.0, 3.0]
            desk.judge(person, task, "ranking", ranks, seconds=4.0)
    found = figures(desk)
    ann, _, cat = found.people
    assert (found.asked, found.given, found.done, found.questions) == (90, 90, True, 30)
    assert (ann.answered, ann.asked, ann.gold, ann.gold_right, ann.seconds) == (36, 36, 6, 1.0, 4.0)
    assert [person.name for person in found.doubtful] == ["cat"]
    assert cat.gold_right is not None
    assert cat.gold_right < 0.9
    without = figures(desk, exclude=["cat"])
    assert without.alpha == pytest.approx(1)
    assert without.tau == pytest.approx(1)
    assert without.pairs_alike == 1
    assert not without.doubtful
    assert found.alpha is not None
    assert found.alpha < 0.7


def test_who_always_takes_the_order_as_shown_is_seen(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(10))
    for task in desk.plan.tasks:
        ranks = [0.0] * 3
        for rank, at in enumerate(shown_order(desk.plan, "ann", task), 1):
            ranks[at] = rank
        desk.judge("ann", task, "ranking", ranks)
    assert figures(desk).people[0].as_shown == 1


def test_a_simulation_says_so_is_repeatable_and_is_kept_apart_from_people(tmp_path: Path) -> None:
    asked: list[int] = []

    def scorer(chunk: Any) -> list[list[float]]:
        asked.append(len(chunk))
        return [[float(len(task.answers) - at) for at in range(len(task.answers))] for task in chunk]

    simulated = plan(8, people=["s1", "s2"], overlap=2, simulated="length")
    for name in ("one", "other"):
        desk = Desk.set_up(tmp_path / name, simulated)
        simulate(desk, scorer, noise=0.5, tie_margin=0.1)
        simulate(desk, scorer, noise=0.5, tie_margin=0.1)  # nothing is left to ask
    assert asked == [8, 8]
    ranks = [
        {
            task: {name: entry.ranks for name, entry in given.items()}
            for task, given in Desk.open(tmp_path / name).said().items()
        }
        for name in ("one", "other")
    ]
    assert ranks[0] == ranks[1]
    assert all(b'"by":"simulated"' in line for line in desk.log.path.read_bytes().splitlines())
    assert figures(desk).by == "simulated"
    people = Desk.set_up(tmp_path / "one", plan(8, people=["s1", "s2"], overlap=2))
    assert people.said() == {}
    assert people.given() == 0
    desk.clear()
    assert not any(desk.said().values())
    simulate(desk, scorer, noise=0.5, tie_margin=0.1)
    assert asked == [8, 8, 8]


def test_without_noise_a_simulation_orders_by_score(tmp_path: Path) -> None:
    desk = Desk.set_up(tmp_path, plan(5, people=["s"], simulated="x"))
    simulate(desk, lambda chunk: [[1.0, 3.0, 2.0] for _ in chunk], noise=0, tie_margin=0)
    assert {tuple(given["s"].ranks) for given in desk.said().values()} == {(3.0, 1.0, 2.0)}
