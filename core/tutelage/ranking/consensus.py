"""Several people's rankings of the same answers as one, and the rows of data that these make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from tutelage.ranking.agreement import Ranks, mid_ranks, pairs_alike
from tutelage.ranking.judgements import Judgement
from tutelage.ranking.orders import tidied
from tutelage.ranking.tasks import Task


def consensus(rankings: Sequence[Ranks]) -> list[int]:
    """One ranking by the mean of the places that people gave (Borda's count): ranks 1, 2 … without gaps, ties kept.

    A tie takes the mean of its places. Sums of half numbers are exact, so that equal means are equal.
    """
    placed = [mid_ranks(ranks) for ranks in rankings]
    return tidied([sum(places) for places in zip(*placed, strict=True)])


def agreement_of(rankings: Sequence[Ranks]) -> float | None:
    """The mean over pairs of people of the share of pairs of answers that they order alike; None for one person."""
    shares = [share for one, other in combinations(rankings, 2) if (share := pairs_alike(one, other)) is not None]
    return sum(shares) / len(shares) if shares else None


def rows_of(
    tasks: Sequence[Task],
    said: Mapping[str, Mapping[str, Judgement]],
    by: str,
    exclude: Collection[str] = (),
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows of the format `ranking`, and of how many questions nothing was made, by reason.

    Who finds all answers bad does not order them: where more than half say so, the question is left out; else the
    others' orders count. Skipped questions count for nobody.

    Args:
        said: for each question, each person's judgement.
        by: what `by` says in every row: who ranked, people or a simulation.
        exclude: people whose judgements do not count.
    """
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for task in tasks:
        if task.gold is not None:
            continue
        counted = [judgement for person, judgement in said.get(task.id, {}).items() if person not in exclude]
        rankings = [judgement.ranks for judgement in counted if judgement.kind == "ranking"]
        bad = sum(judgement.kind == "bad" for judgement in counted)
        if reason := _unusable(rankings, bad, len(counted)):
            left_out[reason] += 1
            continue
        row = {
            "prompt": task.prompt,
            "answers": task.answers,
            "ranks": consensus(rankings),
            "agreement": agreement_of(rankings),
            "people": len(rankings),
            "by": by,
        }
        rows.append({**row, "made_by": task.made_by} if task.made_by else row)
    return rows, left_out


def _unusable(rankings: Sequence[Ranks], bad: int, counted: int) -> str:
    if bad > len(rankings):
        return "all bad"
    if not rankings:
        return "skipped" if counted else "not judged"
    return "all tied" if len(set(consensus(rankings))) == 1 else ""
