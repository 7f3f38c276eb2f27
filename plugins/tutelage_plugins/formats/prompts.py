"""Prompts alone, which a phase answers itself."""

from __future__ import annotations

from typing import Any

from tutelage.formats import DataFormat, Prompted
from tutelage_plugins.formats._prompts import prompt_of

_ANSWERED = ("completion", "chosen", "rejected", "ranks", "label")


class Prompts(DataFormat):
    """`prompt`, as text or as messages that end with the user; `answer` may hold a reference answer.

    Other columns are kept for rewards, which may use them.
    """

    name = "prompts"
    columns = ("prompt",)

    def matches(self, row: dict[str, Any]) -> bool:
        return isinstance(row.get("prompt"), str | list) and not any(column in row for column in _ANSWERED)

    def convert(self, row: dict[str, Any]) -> Prompted:
        prompt, answer = prompt_of(row.get("prompt"), "prompt"), row.get("answer")
        if answer is not None and not isinstance(answer, str | int | float):
            raise ValueError("answer is not text")
        fields = {name: value for name, value in row.items() if name not in ("prompt", "answer", "fields")}
        if isinstance(kept := row.get("fields"), dict):  # of the row that this one was made from
            fields = {**kept, **fields}
        return Prompted(prompt, "" if answer is None else str(answer), fields)
