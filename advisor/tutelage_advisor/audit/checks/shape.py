"""Rows that are no valid records: malformed, with wrong roles, or of another format than the rest."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from tutelage.datacheck import DataCheck, Example, Finding, Flags

if TYPE_CHECKING:
    from collections.abc import Iterable

_KNOWN = ("system", "developer", "user", "assistant", "tool", "function", "text")


class Malformed(DataCheck):
    """Rows that can't be read, or that no known format accepts."""

    name = "malformed"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags = Flags()

    def look(self, example: Example) -> None:
        """A valid row is none of these."""

    def look_broken(self, example: Example) -> None:
        """Leave what `roles` and `empty-answer` name to them."""
        if not wrong_role(example) and not empty_answer(example):
            self.flags.add(example, example.error)

    def findings(self) -> Iterable[Finding]:
        """One finding for all of them."""
        if self.flags:
            yield self.flags.finding(
                self.name,
                severity="error",
                message=f"{len(self.flags)} rows can't be read or have no known format; training refuses them",
                advice="mend what wrote them, or leave the rows out",
                fix="drop",
            )


class Roles(DataCheck):
    """Conversations whose roles are unknown or come in an order that no chat template expects."""

    name = "roles"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags = Flags()

    def look(self, example: Example) -> None:
        """Look at the order of roles."""
        if reason := wrong_role(example):
            self.flags.add(example, reason)

    look_broken = look

    def findings(self) -> Iterable[Finding]:
        """One finding for all of them."""
        if self.flags:
            yield self.flags.finding(
                self.name,
                severity="error",
                message=f"{len(self.flags)} conversations have unknown roles, or roles in a wrong order",
                advice="use system (first), then user and assistant in turns, ending with assistant",
                fix="drop",
            )


class MixedFormats(DataCheck):
    """Rows of another format than most: a dataset has one."""

    name = "mixed-formats"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.by_format: dict[str, Flags] = {}

    def look(self, example: Example) -> None:
        """Sort the row to its format."""
        self.by_format.setdefault(example.format, Flags()).add(example, ", ".join(map(str, example.row)))

    def findings(self) -> Iterable[Finding]:
        """One finding for each format that is not the most frequent."""
        if len(self.by_format) < 2:
            return
        counts = Counter({name: len(flags) for name, flags in self.by_format.items()})
        (most, most_rows), *others = counts.most_common()
        for name, count in others:
            yield self.by_format[name].finding(
                self.name,
                severity="error",
                message=f"{count} rows are of the format {name}, while {most_rows} are {most}",
                advice="turn all rows into one format, or mix a file of each in the recipe",
                figures=dict(counts),
            )


def wrong_role(example: Example) -> str:
    """What is wrong with the order of roles, as a sentence; empty when nothing is."""
    roles = [role for role, _ in example.turns]
    if not roles:
        return ""
    unknown = next((role for role in roles if role not in _KNOWN), None)
    if unknown is not None:
        return f"the role {unknown!r} is unknown" if unknown else "a turn has no role"
    if any(role in ("system", "developer") for role in roles[1:]):
        return "a system turn comes after the first turn"
    if roles[-1] not in ("assistant", "text") and example.format != "prompts":
        return f"the last turn is {roles[-1]}'s, so nothing is learnt from it"
    return _wrong_order(roles)


def _wrong_order(roles: list[str]) -> str:
    spoken = [role for role in roles if role in ("user", "assistant")]
    if spoken and spoken[0] == "assistant":
        return "the assistant speaks before the user"
    for before, role in pairwise(roles):
        if before == role == "user":
            return "two user turns follow one another"
        if before == role == "assistant":
            return "two assistant turns follow one another"
    return ""


def empty_answer(example: Example) -> bool:
    """Whether an answer (or the whole text) is empty but for white space."""
    return any(not answer.strip() for answer in example.answers)
