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
    chosen is preferred) and `margin` (by how much) may be added. The rows of OpenAI's preference tuning are read too:
    `input: {messages: …}`, `preferred_output`, `non_preferred_output`.
    """

    name = "preference"
    columns = ("prompt", "chosen", "rejected")

    def matches(self, row: dict[str, Any]) -> bool:
        return ("chosen" in row and "rejected" in row) or _is_openai(row)

    def convert(self, row: dict[str, Any]) -> Ranking:
        if _is_openai(row):
            return _from_openai(row)
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


def _is_openai(row: dict[str, Any]) -> bool:
    return "preferred_output" in row and "non_preferred_output" in row


def _from_openai(row: dict[str, Any]) -> Ranking:
    asked = row.get("input")
    if not isinstance(asked, dict):
        raise ValueError(f"input is {kind_of(asked)}, not an object with messages")
    prompt = prompt_of(asked.get("messages"), "input.messages")
    answers = [answer_of(row[field], field, prompt) for field in ("preferred_output", "non_preferred_output")]
    if answers[0] == answers[1]:
        raise ValueError("preferred_output and non_preferred_output are the same answer; there is nothing to prefer")
    return Ranking(prompt, answers, [1.0, 2.0])


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
