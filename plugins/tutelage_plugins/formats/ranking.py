"""Several answers to a prompt with their ranks."""

from __future__ import annotations

from typing import Any

from tutelage.formats import DataFormat, Ranking
from tutelage_plugins.formats._prompts import answer_of, prompt_of
from tutelage_plugins.formats._turns import kind_of
from tutelage_plugins.formats.preference import number_of


class Rankings(DataFormat):
    """`prompt`, `answers` (a list) and `ranks` (a number for each answer: 1 is best, equal numbers are ties)."""

    name = "ranking"
    columns = ("prompt", "answers", "ranks")

    def matches(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("answers"), list) and "ranks" in row

    def convert(self, row: dict[str, Any]) -> Ranking:
        prompt = prompt_of(row.get("prompt"), "prompt")
        given, ranks = row.get("answers"), row.get("ranks")
        for field, value in (("answers", given), ("ranks", ranks)):
            if not isinstance(value, list):
                raise ValueError(f"{field} is {kind_of(value)}, not a list")
        assert isinstance(given, list)
        assert isinstance(ranks, list)
        if len(given) < 2:
            raise ValueError(f"answers has {len(given)}; a ranking needs two or more")
        if len(ranks) != len(given):
            raise ValueError(f"ranks has {len(ranks)} and answers {len(given)}; each answer needs a rank")
        answers = [answer_of(answer, f"answers[{index}]", prompt) for index, answer in enumerate(given)]
        found = [number_of(rank, f"ranks[{index}]") for index, rank in enumerate(ranks)]
        if None in found:
            raise ValueError(f"ranks[{found.index(None)}] is missing; each answer needs a rank")
        numbers = [rank for rank in found if rank is not None]
        _refuse_contradictions(answers, numbers)
        return Ranking(prompt, answers, numbers)


def _refuse_contradictions(answers: list[str], ranks: list[float]) -> None:
    if len(set(ranks)) == 1:
        raise ValueError("all answers have the same rank; there is nothing to prefer")
    known: dict[str, float] = {}
    for answer, rank in zip(answers, ranks, strict=True):
        if known.setdefault(answer, rank) != rank:
            raise ValueError(f"the answer {answer[:60]!r} is there twice, with ranks {known[answer]:g} and {rank:g}")
