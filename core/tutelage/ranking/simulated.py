"""Scores that stand in for people, for tests and demonstrations. What they say is marked as simulated everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from statistics import pstdev

from tutelage.ranking.desk import Desk
from tutelage.ranking.judgements import Judgement
from tutelage.ranking.orders import tidied
from tutelage.ranking.tasks import Task, shown_order
from tutelage.runs.folder import now

Scorer = Callable[[Sequence[Task]], list[list[float]]]
"""For each question, a score for each answer; higher is better."""


def ranks_of(scores: Sequence[float], margin: float) -> list[int]:
    """Ranks by score, best first; an answer within `margin` of the next better one is tied with it."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    ranks = [1.0] * len(scores)
    for better, worse in pairwise(order):
        ranks[worse] = ranks[better] + (scores[better] - scores[worse] > margin)
    return tidied(ranks)


def simulate(desk: Desk, scorer: Scorer, *, noise: float, tie_margin: float) -> None:
    """Answer all that is pending in the names of the plan's people.

    Args:
        noise: standard deviation of what is added to each score, each time anew, in standard deviations of all scores.
        tie_margin: scores that differ by no more than this, in the same unit, are tied.
    """
    said = desk.said()
    people = desk.plan.people
    missing = [
        (person, task) for person in people for task in desk.assigned(person) if person not in said.get(task.id, {})
    ]
    tasks = list({task.id: task for _, task in missing}.values())
    if not tasks:
        return
    scores = dict(zip((task.id for task in tasks), scorer(tasks), strict=True))
    unit = pstdev([score for each in scores.values() for score in each])
    judgements = []
    for person, task in missing:
        random = Random(f"simulate {desk.plan.seed} {person} {task.id}")
        noisy = [score + random.gauss(0, noise * unit) for score in scores[task.id]]
        judgement = Judgement(
            kind="ranking",
            person=person,
            at=now(),
            task=task.id,
            ranks=[float(rank) for rank in ranks_of(noisy, tie_margin * unit)],
            shown=shown_order(desk.plan, person, task),
            by="simulated",
        )
        judgements.append((f"simulated {person}", judgement))
    desk.add(judgements)
