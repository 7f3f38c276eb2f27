"""Pairs of answers of which one is preferred."""

from __future__ import annotations

import math
from typing import Any

from tutelage.formats import DataFormat, Ranking
from tutelage_plugins.formats._prompts import answer_of, prompt_of
from tutelage_plugins.formats._turns import kind_of


class Preference(DataFormat):
    """`prompt`, `chosen` and `rejected`, as text or as messages.

    Without `prompt`, chosen and rejected are whole conversations that differ in their last turn. `probability` (that
    chosen is preferred) and `margin` (by how much) may be added.
    """

    name = "preference"
    columns = ("prompt", "chosen", "rejected")

    def matches(self, row: dict[str, Any]) -> bool:
        return "chosen" in row and "rejected" in row

    def convert(self, row: dict[str, Any]) -> Ranking:
        chosen, rejected = row.get("chosen"), row.get("rejected")
        asked = row.get("prompt")
        if asked is None and isinstance(chosen, list) and isinstance(rejected, list):
            asked = chosen[:-1]
        prompt = prompt_of(asked, "prompt")
        answers = [answer_of(chosen, "chosen", prompt), answer_of(rejected, "rejected", prompt)]
        if answers[0] == answers[1]:
            raise ValueError("chosen and rejected are the same answer; there is nothing to prefer")
        probability = number_of(row.get("probability"), "probability")
        if probability is not None and not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}; it must lie between 0 and 1")
        return Ranking(prompt, answers, [1.0, 2.0], probability, number_of(row.get("margin"), "margin"))


def number_of(value: Any, field: str) -> float | None:
    """A finite number, or None where there is none.

    Raises:
        ValueError: naming the field.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} is {kind_of(value)}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"{field} is {value}; it must be a finite number")
    return float(value)
