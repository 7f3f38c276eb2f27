"""Collects what is wrong with the rows of a dataset, so that a person sees it all at once but never a flood."""

from __future__ import annotations

from tutelage.errors import Problem, TutelageError

SHOWN = 20
ALIKE = 3


class RowProblems:
    """The first problems in full, a few of each kind; the others are only counted."""

    def __init__(self) -> None:
        self.first: list[Problem] = []
        self.count = 0

    def add(self, place: str, wrong: str, fix: str = "") -> None:
        """Note a problem at a place."""
        self.count += 1
        alike = sum(problem.wrong == wrong for problem in self.first)
        if len(self.first) < SHOWN and alike < ALIKE:
            self.first.append(Problem(place=place, wrong=wrong, fix=fix))

    def listed(self, label: str) -> list[Problem]:
        """What to tell about the source called `label`."""
        more = self.count - len(self.first)
        return (
            [*self.first, Problem(place=label, wrong=f"and {more:,} more rows with problems")] if more else self.first
        )

    def raise_any(self, label: str) -> None:
        """Raise a TutelageError when there was any problem."""
        if self.count:
            raise TutelageError(self.listed(label))
