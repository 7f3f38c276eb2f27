"""Judgements that were made twice: of the same answers to the same prompt, in several rows."""

from __future__ import annotations

import hashlib
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta

if TYPE_CHECKING:
    from tutelage.data.preparing import Prepared
    from tutelage.data.rendering import Tokens
    from tutelage.errors import Problem

Repeats = Annotated[
    Literal["refuse", "keep"],
    Meta(
        description="Judgements of the same answers in several rows: refuse them, as made by mistake, or keep them, as "
        "of several people, whose agreement a reward model then tells."
    ),
]


def repeated_judgements(prepared: Prepared) -> list[Problem]:
    """Name rows that judge answers which another row has judged already, alike or otherwise.

    The ranks are the first column of what is said of the answers.
    """
    from tutelage.data.problems import RowProblems

    judgements, problems = _Judgements(), RowProblems()
    for examples in [prepared.train, *([prepared.eval] if prepared.eval else [])]:
        for index in range(len(examples)):
            place = examples.place(index)
            if wrong := judgements.add(examples[index], place):
                problems.add(place, wrong, "keep one of the two, or set the phase's repeats: keep")
    return problems.listed("data")


class _Judgements:
    """Every pair of answers that was judged, with the row that judged it first."""

    def __init__(self) -> None:
        self._seen: dict[tuple[bytes, bytes], tuple[str, int]] = {}

    def add(self, tokens: Tokens, place: str) -> str:
        """Note what a row judges; what is wrong with it, if another row judged the same pair, else ''."""
        assert tokens.values is not None
        names = [hashlib.blake2b(part.ids.tobytes(), digest_size=12).digest() for part in tokens.sequences()]
        ranks = tokens.values[:, 0]
        wrong = ""
        for (first, rank), (second, other) in combinations(zip(names, ranks, strict=True), 2):
            pair, says = ((first, second), int(np.sign(other - rank)))
            if first > second:
                pair, says = (second, first), -says
            where, said = self._seen.setdefault(pair, (place, says))
            if where != place and not wrong:
                wrong = f"judges the same answers as {where}" + (", and otherwise" if said != says else "")
        return wrong
