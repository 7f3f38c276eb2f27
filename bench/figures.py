"""A figure: what was measured, repeat by repeat, of Tutelage and of a peer, and what it was to reach."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from bench.intervals import Interval, interval, ratio

ALLOWANCE = 0.15
"How far a figure of a single repeat may be off, either way, when it is compared with an older one."


class Figure(msgspec.Struct, kw_only=True):
    """One measured thing.

    The ratio to the peer is `ours/peer` or `peer/ours`; the target is of the ratio, or of our own figure where there is
    no peer, and is reached from the side that is better.
    """

    section: str
    name: str
    measure: str
    unit: str = ""
    better: Literal["higher", "lower"]
    ours: list[float]
    peer: list[float] = []
    over: Literal["ours/peer", "peer/ours"] = "ours/peer"
    target: float | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """What the same figure of another report is found by."""
        return f"{self.section}: {self.name}, {self.measure}"

    def own(self) -> Interval:
        """Our figure over the repeats."""
        return interval(self.ours)

    def beside(self) -> Interval | None:
        """The ratio over the repeats, if there is a peer."""
        if not self.peer:
            return None
        pair = (self.ours, self.peer) if self.over == "ours/peer" else (self.peer, self.ours)
        return ratio(*pair)

    @property
    def ratio_better(self) -> Literal["higher", "lower"]:
        """Which ratio is the better one."""
        if self.over == "ours/peer":
            return self.better
        return "lower" if self.better == "higher" else "higher"

    def reached(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        beside = self.beside()
        middle, better = (beside.middle, self.ratio_better) if beside else (self.own().middle, self.better)
        return middle >= self.target if better == "higher" else middle <= self.target


class Report(msgspec.Struct, kw_only=True):
    """All that one run of the bench found."""

    made: str
    minutes: float = 0.0
    machine: dict[str, Any]
    versions: dict[str, str]
    scale: dict[str, Any]
    "What decides how much is measured; only reports of the same scale can be compared."
    figures: list[Figure] = []
    settings: dict[str, list[dict[str, Any]]] = {}
    "Of each work, the peer's settings that were tried, each with its speed, the best first."
    failures: dict[str, str] = {}
    "What could not be measured, and why."
    notes: list[str] = []
    turns: list[dict[str, Any]] = []
    "Every single process that trained."


def regressions(old: Report, new: Report) -> list[str]:
    """Figures that are worse than before, beyond what repeats differ by: whose intervals don't overlap.

    On the same machine our own figures are compared; on another one only ratios to a peer, which was measured beside.

    Raises:
        ValueError: when the reports are of different scales, and so nothing can be compared.
    """
    if old.scale != new.scale:
        raise ValueError(f"it was measured with {old.scale}, and this with {new.scale}")
    same = _machine(old) == _machine(new)
    before = {figure.key: figure for figure in old.figures}
    found = []
    for figure in new.figures:
        earlier = before.get(figure.key)
        if earlier is None:
            continue
        pair = (earlier.own(), figure.own()) if same else (earlier.beside(), figure.beside())
        better = figure.better if same else figure.ratio_better
        if pair[0] is None or pair[1] is None or not _worse(pair[0], pair[1], better):
            continue
        what = f" {figure.unit}".rstrip() if same else " times the peer's" if figure.over == "ours/peer" else "x"
        found.append(f"{figure.key}: {pair[1].middle:.4g}{what}, and was {pair[0].middle:.4g}")
    return found


def _machine(report: Report) -> tuple[Any, ...]:
    return report.machine.get("processor"), report.machine.get("cores")


def _worse(old: Interval, new: Interval, better: str) -> bool:
    old_low, old_high = _bounds(old)
    new_low, new_high = _bounds(new)
    return new_high < old_low if better == "higher" else new_low > old_high


def _bounds(found: Interval) -> tuple[float, float]:
    if found.low is None or found.high is None:
        return found.middle * (1 - ALLOWANCE), found.middle * (1 + ALLOWANCE)
    return found.low, found.high
