"""How a ranking goes: progress, agreement, and who does not look careful."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import combinations, pairwise
from statistics import median
from typing import Literal

import msgspec

from tutelage.ranking.agreement import (
    Interval,
    Ranks,
    alpha_of_rankings,
    kendall_tau,
    mean_with_interval,
    pairs_alike,
    right_pairs,
)
from tutelage.ranking.careless import SIGNIFICANCE, Look, look
from tutelage.ranking.desk import Desk
from tutelage.ranking.judgements import Judgement

Measure = Callable[[Ranks, Ranks], "float | None"]

DOUBTFUL = ("random", "reversed")
"Verdicts on people that are told."


class PersonFigures(msgspec.Struct, kw_only=True):
    """One person's work so far. `tau` is Kendall's tau-b with the others, a mean over questions."""

    name: str
    asked: int
    answered: int
    "Of the questions asked of this person."
    ranked: int
    bad: int
    skipped: int
    seconds: float | None
    "Median for an answer."
    as_shown: float | None
    "Share of orders that are just the order in which the answers were shown."
    tau: float | None
    tau_interval: Interval | None
    gold: int
    "Questions with known answers that were answered."
    gold_right: float | None
    "Share of their pairs of answers that were ordered right; a tie counts half."
    excluded: bool
    look: Look


class Figures(msgspec.Struct, kw_only=True):
    """A ranking as a whole. Agreement leaves out people who are excluded, and questions with known answers."""

    by: Literal["people", "simulated"]
    simulated: str
    "What ranks instead of people, or ''."
    questions: int
    asked: int
    wanted: int
    given: int
    done: bool
    "Whether the run can go on."
    alpha: float | None
    "Krippendorff's alpha for ordinal data."
    alpha_interval: Interval | None
    tau: float | None
    "Kendall's tau-b, the mean over questions and pairs of people."
    tau_interval: Interval | None
    pairs_alike: float | None
    "Share of the pairs of answers that two people both ordered, which they ordered alike."
    people: list[PersonFigures]

    @property
    def doubtful(self) -> list[PersonFigures]:
        """Who does not look careful, and is not excluded yet."""
        return [person for person in self.people if person.look.verdict in DOUBTFUL and not person.excluded]


def figures(desk: Desk, exclude: Collection[str] = ()) -> Figures:
    """Measure a ranking as it stands.

    Args:
        exclude: people to leave out besides those whom the plan does.
    """
    said = desk.said()
    left_out = {*desk.plan.exclude, *exclude}
    rankings = {
        task: {name: given.ranks for name, given in answers.items() if given.kind == "ranking"}
        for task, answers in said.items()
    }
    gold = {task.id: task.gold for task in desk.plan.tasks if task.gold is not None}
    counted: list[list[Ranks]] = [
        [ranks for name, ranks in answers.items() if name not in left_out]
        for task, answers in rankings.items()
        if task not in gold
    ]
    alpha, alpha_interval = alpha_of_rankings([answers for answers in counted if len(answers) > 1])
    tau, tau_interval = mean_with_interval(_means(counted, kendall_tau))
    alike = _means(counted, pairs_alike)
    return Figures(
        by="simulated" if desk.plan.simulated else "people",
        simulated=desk.plan.simulated,
        questions=len(desk.plan.tasks) - len(gold),
        asked=desk.plan.asked,
        wanted=desk.plan.wanted,
        given=desk.given(),
        done=desk.given() >= desk.plan.wanted,
        alpha=alpha,
        alpha_interval=alpha_interval,
        tau=tau,
        tau_interval=tau_interval,
        pairs_alike=sum(alike) / len(alike) if alike else None,
        people=[_person(desk, name, said, rankings, gold, name in left_out) for name in desk.people()],
    )


def _means(tasks: list[list[Ranks]], measure: Measure) -> list[float]:
    """For each question the mean of a measure over pairs of people; questions where no pair has one are left out."""
    found = []
    for answers in tasks:
        values = [value for pair in combinations(answers, 2) if (value := measure(*pair)) is not None]
        if values:
            found.append(sum(values) / len(values))
    return found


def _person(
    desk: Desk,
    name: str,
    said: Mapping[str, Mapping[str, Judgement]],
    rankings: Mapping[str, Mapping[str, Ranks]],
    gold: Mapping[str, Ranks],
    excluded: bool,
) -> PersonFigures:
    own = [answers[name] for answers in said.values() if name in answers]
    asked = {task.id for task in desk.assigned(name)}
    orders = [answer for answer in own if answer.kind == "ranking"]
    seconds = [answer.seconds for answer in own if answer.seconds is not None]
    shown = [_as_shown(answer) for answer in orders if answer.shown]
    with_others = [
        sum(values) / len(values)
        for task, answers in rankings.items()
        if task not in gold and name in answers and (values := _taus(answers, name))
    ]
    tau, interval = mean_with_interval(with_others)
    right = [
        share
        for task, known in gold.items()
        if name in rankings.get(task, {}) and (share := right_pairs(rankings[task][name], known)) is not None
    ]
    return PersonFigures(
        name=name,
        asked=len(asked),
        answered=sum(answer.task in asked for answer in own),
        ranked=len(orders),
        bad=sum(answer.kind == "bad" for answer in own),
        skipped=sum(answer.kind == "skip" for answer in own),
        seconds=median(seconds) if seconds else None,
        as_shown=sum(shown) / len(shown) if shown else None,
        tau=tau,
        tau_interval=interval,
        gold=len(right),
        gold_right=sum(right) / len(right) if right else None,
        excluded=excluded,
        look=look(name, rankings, gold),
    )


def _taus(answers: Mapping[str, Ranks], name: str) -> list[float]:
    others = (ranks for other, ranks in answers.items() if other != name)
    return [value for ranks in others if (value := kendall_tau(answers[name], ranks)) is not None]


def _as_shown(answer: Judgement) -> bool:
    ranks = [answer.ranks[place] for place in answer.shown]
    return all(before < after for before, after in pairwise(ranks))


def sentence(person: PersonFigures) -> str:
    """What is told of a person who does not look careful, with the figures that say so."""
    found = person.look
    agrees = f"agreement {found.agreement:.2f} over {found.questions} questions, others reach {found.expected:.2f}"
    if found.verdict == "reversed":
        return f"{person.name} orders answers the other way round ({agrees}): worst to best instead of best to worst?"
    p = f"p = {found.p:.2g}, careful people stay below {SIGNIFICANCE}"
    return f"{person.name} can't be told from somebody who orders at random ({agrees}; {p})"
