"""What became of a dataset's rows: counts by reason, with the places of the first ones."""

from __future__ import annotations

import msgspec

from tutelage.data.problems import SHOWN
from tutelage.errors import Problem


class Reason(msgspec.Struct):
    """Rows that were dropped, cut or split for one reason: how many, and where the first of them are."""

    count: int = 0
    places: list[str] = msgspec.field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < SHOWN:
            self.places.append(place)


class SourceReport(msgspec.Struct):
    """What became of the rows of one source. A row is kept whole, kept cut, kept split, or dropped."""

    label: str
    format: str = ""
    read: int = 0
    kept: int = 0
    cut: int = 0
    split: int = 0
    dropped: int = 0
    examples: int = 0
    tokens: int = 0
    learnt: int = 0
    longest: int = 0
    "Tokens of the longest row, before anything was cut or dropped."
    reasons: dict[str, Reason] = msgspec.field(default_factory=dict)

    def note(self, reason: str, place: str) -> None:
        """Count a row that was not kept as it is."""
        self.reasons.setdefault(reason, Reason()).add(place)

    def loss(self, allowed: float, max_length: int) -> Problem | None:
        """What to tell when a larger share of the rows was dropped than is allowed, or all of them."""
        share = self.dropped / max(self.read, 1)
        if self.kept and share <= allowed:
            return None
        reasons = "; ".join(f"{reason.count:,} {name} ({self._first(reason)})" for name, reason in self.reasons.items())
        fix = f"raise trainer.max_length (the longest row has {self.longest:,} tokens, max_length is {max_length:,})"
        fix += ", or set data.too_long to cut or split"
        if self.kept:
            fix += f", or allow it with data.allow_loss: {_rounded_up(share)}"
        return Problem(
            place=self.label,
            wrong=f"{self.dropped:,} of {self.read:,} rows ({share:.1%}) would be lost: {reasons}",
            fix=fix,
        )

    def _first(self, reason: Reason) -> str:
        places = [place.removeprefix(self.label).strip() for place in reason.places[:3]]
        return ", ".join(places + ["…"] * (reason.count > len(places)))


class DataReport(msgspec.Struct):
    """What became of all rows, of training and evaluation sources alike, and what is trained on in an epoch."""

    read: int
    kept: int
    cut: int
    split: int
    dropped: int
    examples: int
    "In one epoch, after holding out and mixing."
    tokens: int
    learnt: int
    longest: int
    eval_examples: int
    eval_tokens: int
    eval_in_train: int
    "Evaluation examples whose very tokens are trained on too."
    sources: list[SourceReport]


def _rounded_up(share: float) -> float:
    """The share with two digits after the point, never less than it is."""
    return min(1.0, int(share * 100 + 1) / 100)
