"""What a recipe's data holds, as far as time depends on it: how many rows, and how long prompts and answers are."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from tutelage.data.problems import RowProblems
from tutelage.data.reading import files_of, rows
from tutelage.errors import TutelageError
from tutelage.formats import Continuation, Conversation, DataFormat, Prompt, Ranking, Record, Text
from tutelage.plugins import Host

CHARACTERS_PER_TOKEN = 4
SAMPLED = 200
"Rows whose lengths are measured."
LARGEST_COUNTED = 500_000_000
"Bytes of JSON Lines whose rows are counted; of other files a tenth, as they have to be parsed for it."


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset in round numbers; lengths are mean tokens, `longest` is the longest prompt's."""

    count: int
    prompt: float
    answer: float
    answers: int = 1
    longest: float = 0.0
    tokens: float = 0.0
    "Of a whole row as the file has it."


def rows_of(source: str, base: Path, host: Host, form: str = "") -> Rows | None:
    """Measure what a recipe names as data; None where that is not cheap (the hub, a huge file) or not possible."""
    try:
        found = files_of(source, base, "data")
        if found.repository or not found.files:
            return None
        sample = list(islice(rows(found, RowProblems()), SAMPLED))
    except (TutelageError, OSError):
        return None
    count = sum(_count(path, len(sample)) for _, path in found.files)
    if not sample or not count:
        return None
    formats: list[Any] = [made() for name, made in host.classes("format").items() if form in ("", name)]
    lengths = [length for _, row in sample if (length := _lengths(row, formats)) is not None]
    size = sum(path.stat().st_size for _, path in found.files)
    prompts, answers, numbers = zip(*lengths, strict=True) if lengths else ((0.0,), (0.0,), (1,))
    return Rows(
        count=count,
        prompt=_mean(prompts),
        answer=_mean(answers),
        answers=round(_mean(numbers)),
        longest=max(prompts),
        tokens=size / count / CHARACTERS_PER_TOKEN,
    )


def _count(path: Path, sampled: int) -> int:
    """Rows of one file; 0 where they can't be counted cheaply."""
    size = path.stat().st_size
    if path.suffix == ".jsonl" and size <= LARGEST_COUNTED:
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    if size > LARGEST_COUNTED // 10:
        return 0
    source = files_of(str(path), Path(), "data")
    return sum(1 for _ in rows(source, RowProblems())) if sampled >= SAMPLED else sampled


def _lengths(row: dict[str, Any], formats: list[DataFormat]) -> tuple[float, float, int] | None:
    """Tokens of a row's prompt and of its mean answer, and how many answers it has."""
    known = next((each for each in formats if each.matches(row)), None)
    if known is None:
        return None
    try:
        prompt, answers = _parts(known.convert(row))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    alternatives = row.get("answers")
    if not answers and isinstance(alternatives, list):  # not ranked yet
        answers = [str(answer) for answer in alternatives]
    size = sum(map(len, answers)) / max(1, len(answers))
    return prompt / CHARACTERS_PER_TOKEN, size / CHARACTERS_PER_TOKEN, max(1, len(answers))


def _parts(record: Record) -> tuple[int, list[str]]:
    """Characters of a record's prompt, and its answers."""
    if isinstance(record, Text):
        return 0, [record.text]
    if isinstance(record, Continuation):
        return len(record.prompt), [record.completion]
    if isinstance(record, Conversation):
        *before, last = record.messages
        return _asked(before), [str(last.get("content") or "")]
    return _asked(record.prompt), record.answers if isinstance(record, Ranking) else [record.answer] * bool(
        record.answer
    )


def _asked(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(str(turn.get("content") or "")) for turn in prompt)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
