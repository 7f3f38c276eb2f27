"""Who orders answers as if at random: a randomisation test of a person's agreement with the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from statistics import NormalDist, median_high
from typing import Literal

import msgspec

from tutelage.ranking.agreement import Ranks, reorderings, signs

Rankings = Mapping[str, Mapping[str, Ranks]]
"""For each question, what each person said."""

SIGNIFICANCE = 0.01
"A person who would agree as much by chance less often than this orders with care."

POWER = 0.99
"Nobody is named before this share of people as careful as the others would have shown it by now."

CAREFUL = 0.5
"How far a careful person agrees with known answers, where nobody else answered them to compare with."

_DRAWS = 1999
_WORK = 500_000


class Look(msgspec.Struct, kw_only=True):
    """Whether a person's orders have to do with the answers.

    `agreement` is (C - D)/P, the mean over questions and other people (known answers, where there are any) of
    concordant less discordant pairs of answers, as a share of all pairs; 0 is what chance gives. `p` is how probable
    it is that somebody who gives the same ranks to the answers at random agrees at least as much: a randomisation test
    in which every order of a question is equally probable (Kendall, 1938; Edgington, 1980), with (b + 1)/(m + 1) for b
    of m draws as much (Phipson and Smyth, 2010). `power` is how probable p < 0.01 would be for somebody who agrees as
    much as the others do among themselves (`expected`), by the normal approximation.

    `verdict`: `careful` for p < 0.01; else, when the power is 0.99 so that it is no lack of judgements, `random`, or
    `reversed` where disagreeing so much is as improbable; else `too few`.
    """

    verdict: Literal["careful", "random", "reversed", "too few"]
    questions: int
    agreement: float | None = None
    expected: float | None = None
    p: float | None = None
    power: float | None = None


def look(person: str, rankings: Rankings, known: Mapping[str, Ranks] | None = None) -> Look:
    """Judge one person by the others' rankings, and by those of `known` answers where there are any.

    Rankings that tie all answers say nothing of care and do not count. With one other person and no known answers it
    can't be told which of the two is careless: the verdict is then `too few`, unless they agree.
    """
    known = known or {}
    mine = _compared(person, rankings, known, leaving=())
    if not mine:
        return Look(verdict="too few", questions=0)
    random = Random(0)
    chances = []
    agreement = 0.0
    for ranks, others in mine:
        agreement += _alike(ranks, others)
        chances.append([_alike(order, others) for order in reorderings(ranks, random)])
    agreement /= len(mine)
    above, below = _tails(agreement, chances, random)
    expected = _expected(person, rankings, known)
    spread = math.sqrt(sum(map(_variance, chances))) / len(mine)
    power = _power(expected, spread)
    verdict: Literal["careful", "random", "reversed", "too few"] = "too few"
    if above < SIGNIFICANCE:
        verdict = "careful"
    elif power is not None and power >= POWER:
        verdict = "reversed" if below < SIGNIFICANCE else "random"
    return Look(verdict=verdict, questions=len(mine), agreement=agreement, expected=expected, p=above, power=power)


def _compared(
    person: str, rankings: Rankings, known: Mapping[str, Ranks], leaving: tuple[str, ...]
) -> list[tuple[Ranks, list[float]]]:
    """A person's rankings, each with the mean signs that the others (or what is known) give to its pairs of answers."""
    found = []
    for task, given in rankings.items():
        if person not in given or not any(signs(given[person])):
            continue
        others = [ranks for name, ranks in given.items() if name != person and name not in leaving]
        others = [known[task]] if task in known else others
        if others:
            told = [signs(ranks) for ranks in others]
            found.append((given[person], [sum(pair) / len(told) for pair in zip(*told, strict=True)]))
    return found


def _alike(ranks: Ranks, others: list[float]) -> float:
    return sum(a * b for a, b in zip(signs(ranks), others, strict=True)) / len(others)


def _expected(person: str, rankings: Rankings, known: Mapping[str, Ranks]) -> float | None:
    """How far the others agree among themselves and with what is known: the median over people."""
    others = {name for given in rankings.values() for name in given if name != person}
    reached = []
    for other in sorted(others):
        compared = _compared(other, rankings, known, leaving=(person,))
        if compared:
            reached.append(sum(_alike(ranks, told) for ranks, told in compared) / len(compared))
    if reached:
        return median_high(reached)
    return CAREFUL if any(person in rankings.get(task, {}) for task in known) else None


def _tails(agreement: float, chances: list[list[float]], random: Random) -> tuple[float, float]:
    """How probable chance agrees at least, and at most, as much."""
    draws = max(499, min(_DRAWS, _WORK // len(chances)))
    totals = [0.0] * draws
    for scores in chances:
        totals = [total + score for total, score in zip(totals, random.choices(scores, k=draws), strict=True)]
    observed = agreement * len(chances)
    slack = 1e-9 * len(chances)
    above = sum(total >= observed - slack for total in totals)
    below = sum(total <= observed + slack for total in totals)
    return (above + 1) / (draws + 1), (below + 1) / (draws + 1)


def _variance(scores: list[float]) -> float:
    mean = sum(scores) / len(scores)
    return sum((score - mean) ** 2 for score in scores) / len(scores)


def _power(expected: float | None, spread: float) -> float | None:
    if expected is None or not spread:
        return None
    normal = NormalDist()
    return normal.cdf(expected / spread - normal.inv_cdf(1 - SIGNIFICANCE))
