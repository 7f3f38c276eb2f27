"""A data format: `question`, `choices` and the number of the right one."""

from __future__ import annotations

from typing import Any

import tutelage


class Quiz(tutelage.DataFormat):
    """`question`, `choices: [text, …]` and `right`, the place of the right one (from 0)."""

    name = "quiz"
    columns = ("question", "choices", "right")

    def matches(self, row: dict[str, Any]) -> bool:
        """By the three columns."""
        return set(self.columns) <= row.keys()

    def convert(self, row: dict[str, Any]) -> tutelage.Continuation:
        """The choices with letters as prompt, the right letter as completion."""
        choices, right = row.get("choices"), row.get("right")
        if not isinstance(choices, list) or not 2 <= len(choices) <= 26:
            raise ValueError("choices must be a list of 2 to 26 texts")
        if not isinstance(right, int) or not 0 <= right < len(choices):
            raise ValueError(f"right is {right!r}, which is none of the {len(choices)} choices (they count from 0)")
        lines = [f"{letter(index)}. {choice}" for index, choice in enumerate(choices)]
        return tutelage.Continuation("\n".join([str(row["question"]), *lines]), letter(right))


def letter(index: int) -> str:
    """0 is A."""
    return chr(ord("A") + index)
