"""The plugin base class of data checks: what is wrong with a dataset, found row by row."""

from __future__ import annotations

import re
from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tutelage.plugin import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterable

Severity = Literal["error", "warning", "note"]
Fix = Literal["", "drop"]

_WORDS = re.compile(r"\w+")


class Example(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One row as checks see it. `error` says why it is no valid record; `turns` then hold what could be read."""

    number: int
    "Counted from 1 over the whole dataset, broken rows included."
    place: str
    "The file and line, for people."
    row: dict[str, Any]
    format: str = ""
    turns: list[tuple[str, str]] = []
    "Role and text of each turn; plain text is one turn of the role `text`."
    error: str = ""

    @cached_property
    def answers(self) -> list[str]:
        """What the model would learn to say: the text of every assistant turn (or the plain text)."""
        return [text for role, text in self.turns if role in ("assistant", "text")]

    @cached_property
    def answer(self) -> str:
        """The last of the answers; empty when there is none."""
        return self.answers[-1] if self.answers else ""

    @cached_property
    def prompt(self) -> str:
        """All that comes before the last answer, system turn included, a paragraph a turn."""
        before = self.turns[:-1] if self.turns and self.turns[-1][0] in ("assistant", "text") else self.turns
        return "\n\n".join(text for _, text in before)

    @cached_property
    def question(self) -> str:
        """What the user said in all turns."""
        return "\n\n".join(text for role, text in self.turns if role == "user")

    @cached_property
    def text(self) -> str:
        """Every turn's text."""
        return "\n\n".join(text for _, text in self.turns)

    @cached_property
    def lower(self) -> str:
        """Every turn's text in lower case, with plain apostrophes."""
        return self.text.lower().replace("’", "'")

    @cached_property
    def words(self) -> frozenset[str]:
        """The different words of all turns, in lower case."""
        return frozenset(_WORDS.findall(self.lower))

    @cached_property
    def answer_words(self) -> list[str]:
        """The last answer's words in lower case."""
        return _WORDS.findall(self.answer.lower())

    @cached_property
    def question_words(self) -> list[str]:
        """The user's words in lower case."""
        return _WORDS.findall(self.question.lower())


class Evidence(msgspec.Struct, frozen=True):
    """One row that shows a finding. The audit masks secrets in `shown` and cuts it to a line."""

    row: int
    place: str
    shown: str


class Finding(msgspec.Struct, kw_only=True):
    """One thing that a check found: what it is, where, and what to do about it."""

    check: str
    severity: Severity
    message: str
    advice: str
    rows: list[int] = []
    evidence: list[Evidence] = []
    figures: dict[str, Any] = {}
    fix: Fix = ""
    "What is safe to do without asking: `drop` leaves the rows out."


class Flags:
    """Gathers the rows that a finding names, and the first few as evidence."""

    def __init__(self, shown: int = 5) -> None:
        self.rows: list[int] = []
        self.evidence: list[Evidence] = []
        self._shown = shown

    def add(self, example: Example, shown: str) -> None:
        """Name a row; `shown` is what a person needs to see of it."""
        self.rows.append(example.number)
        if len(self.evidence) < self._shown:
            self.evidence.append(Evidence(example.number, example.place, shortened(shown)))

    def finding(
        self,
        check: str,
        *,
        severity: Severity,
        message: str,
        advice: str,
        figures: dict[str, Any] | None = None,
        fix: Fix = "",
    ) -> Finding:
        """A finding that names these rows."""
        return Finding(
            check=check,
            severity=severity,
            message=message,
            advice=advice,
            rows=self.rows,
            evidence=self.evidence,
            figures=figures or {},
            fix=fix,
        )

    def __len__(self) -> int:
        return len(self.rows)


def shortened(text: str, most: int = 2000) -> str:
    """The start and the end of a long text."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def excerpt(text: str, length: int = 120) -> str:
    """Text in one line, cut in the middle when it is long, so that its start and its end both show."""
    text = " ".join(shortened(text).split())
    start = length * 2 // 3
    return text if len(text) <= length else f"{text[:start]} … {text[start + 3 - length :]}"


class DataCheck(Plugin):
    """Plugin base: looks at every row of a dataset once, then says what it found. One instance serves one audit.

    Rows come in the dataset's order, and may be millions: a check keeps a few bytes of each, never the rows.
    """

    @abstractmethod
    def look(self, example: Example) -> None:
        """Look at a valid row."""

    def look_broken(self, example: Example) -> None:
        """Look at a row that is no valid record (`example.error` says why)."""

    def look_held_out(self, example: Example) -> None:
        """Look at a row of the evaluation set; these come first of all."""

    def look_production(self, example: Example) -> None:
        """Look at a prompt seen in production; these come before the dataset's own rows."""

    @abstractmethod
    def findings(self) -> Iterable[Finding]:
        """What was found, once all rows were seen."""
