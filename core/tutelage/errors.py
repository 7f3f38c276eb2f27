"""What a person is told when something they gave can't be used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import msgspec


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, as a sentence: the place, what is wrong, and what to do."""

    place: str
    wrong: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{place}{self.wrong}{fix}"


class TutelageError(Exception):
    """Something a user can mend. The command line prints its problems and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def at(cls, place: str, wrong: str, fix: str = "") -> Self:
        """The common case of a single problem."""
        return cls(Problem(place=place, wrong=wrong, fix=fix))


class RunFailed(TutelageError):
    """A run began and could not go on: a diverged loss, a stalled rank, a saved artifact that differs."""

    exit_code = 1


class RunWaiting(TutelageError):
    """A run has come to where people must act first; `tutelage resume` goes on when they have."""

    exit_code = 3


class RunStopped(TutelageError):
    """A run was asked to stop (Ctrl-C, SIGTERM) and saved first; `tutelage resume` goes on."""

    exit_code = 130
