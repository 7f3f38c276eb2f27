"""The format of Stanford Alpaca (Taori et al. 2023), with the `system` and `history` that later sets add to it."""

from __future__ import annotations

from typing import Any

from tutelage.formats import Continuation, Conversation, DataFormat
from tutelage_plugins.formats._turns import conversation, kind_of, text_field


class Alpaca(DataFormat):
    """`instruction`, `input` (may be empty) and `output`; also `system` and `history: [[question, answer], …]`."""

    name = "alpaca"
    columns = ("instruction", "output")

    def matches(self, row: dict[str, Any]) -> bool:
        return all(isinstance(row.get(column), str) for column in self.columns)

    def convert(self, row: dict[str, Any]) -> Continuation | Conversation:
        prompt, output = text_field(row, "instruction"), text_field(row, "output")
        given = _optional_text(row, "input")
        if given.strip():
            prompt = f"{prompt}\n\n{given}"
        system, history = _optional_text(row, "system"), row.get("history") or []
        if not system and not history:
            return Continuation(prompt, output, gap="\n\n")
        turns = [{"role": "system", "content": system}] if system else []
        for number, pair in enumerate(_pairs(history)):
            question, answer = pair
            if not isinstance(question, str) or not isinstance(answer, str):
                raise ValueError(f"history[{number}] is not a question and an answer")
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": output}]
        return conversation(turns, None, "turn")


def _optional_text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field} is {kind_of(value)}, not text")
    return value or ""


def _pairs(history: Any) -> list[Any]:
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("history is not a list of [question, answer] pairs")
    return history
