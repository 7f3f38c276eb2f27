"""A review: opened with a sample, decided row by row, then signed for the whole dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.config import Config, convert
from tutelage.errors import Problem, TutelageError
from tutelage_advisor.audit.reading import examples, open_source
from tutelage_advisor.review.chain import Entry, TamperedError, append, read
from tutelage_advisor.review.sampling import Item, choose
from tutelage_advisor.review.seal import fingerprints, row_fingerprint, seal

if TYPE_CHECKING:
    from tutelage_advisor.audit.report import Audit

ASPECTS = ("accurate", "unbiased", "appropriate")


class Decision(Config):
    """What a person says of one row."""

    row: int
    accurate: bool
    unbiased: bool
    appropriate: bool
    note: str = ""

    @property
    def accepted(self) -> bool:
        """Whether nothing is wrong with the row."""
        return self.accurate and self.unbiased and self.appropriate


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the sample with what it says."""

    item: Item
    turns: list[tuple[str, str]]
    error: str


class State(msgspec.Struct, kw_only=True):
    """Where a review stands. Rows are known by their fingerprints, so decisions hold when other rows change."""

    pending: list[Item]
    decided: dict[str, dict[str, Any]]
    "The last decision on each fingerprint of the sample."
    entries: list[Entry]


def record_path(path: str | Path) -> Path:
    """Where the record of a dataset lies: beside it, as `NAME.review`."""
    path = Path(path)
    return path.with_name(f"{path.name}.review")


def entries_of(path: str | Path) -> list[Entry]:
    """The entries of a dataset's record; none when there is no record.

    Raises:
        TutelageError: when it was tampered with.
    """
    record = record_path(path)
    if not record.exists():
        return []
    try:
        return read(record)
    except TamperedError as error:
        raise TutelageError.at(str(record), f"was tampered with: {error}", "find out who changed it") from None


def begin(path: str | Path, who: str, report: Audit, size: int, seed: int = 0) -> State:
    """Choose a sample and note it in the record, unless one of this very data was chosen before.

    Raises:
        TutelageError: when data or record can't be read or written.
    """
    current = seal(path)
    opened = _opened(entries_of(path))
    if opened is None or opened.content["fingerprint"] != current.fingerprint:
        try:
            items = choose(path, report, size, seed)
        except ImportError as error:
            raise TutelageError.at(
                "review", f"needs the package {error.name}", "pip install 'tutelage[audit]'"
            ) from None
        content = {
            "fingerprint": current.fingerprint,
            "rows": current.rows,
            "seed": seed,
            "verdict": report.readiness.verdict,
            "sample": [msgspec.to_builtins(item) for item in items],
        }
        append(record_path(path), who, "opened", [content])
    return state(path)


def state(path: str | Path) -> State:
    """Which rows of the sample are decided, and which are pending.

    Raises:
        TutelageError: when no review was begun, or its record was tampered with.
    """
    entries = entries_of(path)
    opened = _opened(entries)
    if opened is None:
        raise TutelageError.at(str(path), "has no review yet", f"begin one: tutelage review {path}")
    items = [msgspec.convert(item, Item) for item in opened.content["sample"]]
    last = {entry.content["fingerprint"]: entry.content for entry in entries if entry.kind == "decision"}
    chosen = {item.fingerprint for item in items}
    return State(
        pending=[item for item in items if item.fingerprint not in last],
        decided={found: content for found, content in last.items() if found in chosen},
        entries=entries,
    )


def decide(path: str | Path, who: str, decisions: list[Any]) -> State:
    """Note decisions (`Decision`s, or mappings like them) on rows of the sample. The last one on a row counts.

    Raises:
        TutelageError: with every decision that is malformed or not of the sample; then none is noted.
    """
    entries = entries_of(path)
    opened = _opened(entries)
    if opened is None:
        raise TutelageError.at(str(path), "has no review yet", f"begin one: tutelage review {path}")
    sample = {item["row"]: item for item in opened.content["sample"]}
    problems: list[Problem] = []
    contents: list[dict[str, Any]] = []
    for index, given in enumerate(decisions, 1):
        try:
            decision = given if isinstance(given, Decision) else convert(given, Decision, f"decision {index}")
        except TutelageError as error:
            problems += error.problems
            continue
        item = sample.get(decision.row)
        if item is None:
            problems.append(Problem(place=f"decision {index}", wrong=f"row {decision.row} is not in the sample"))
            continue
        contents.append(
            {**msgspec.to_builtins(decision), "fingerprint": item["fingerprint"], "stratum": item["stratum"]}
        )
    if problems:
        raise TutelageError(problems)
    append(record_path(path), who, "decision", contents)
    return state(path)


def shown(path: str | Path, items: list[Item]) -> list[Shown]:
    """What the rows of some items say; those that changed since they were chosen are left out.

    Raises:
        TutelageError: when the data can't be read.
    """
    wanted = {item.fingerprint: item for item in items}
    found = []
    for example in examples(open_source(path)):
        item = wanted.pop(row_fingerprint(example.row, "" if example.row else example.error), None)
        if item is not None:
            found.append(Shown(item=item, turns=example.turns, error=example.error))
    order = {item.fingerprint: at for at, item in enumerate(items)}
    return sorted(found, key=lambda one: order[one.item.fingerprint])


def sign(path: str | Path, who: str) -> Entry:
    """Sign that the data is accurate, unbiased and appropriate: seals every row as it is now.

    Raises:
        TutelageError: while rows of the sample are pending, or rows that were found wrong are still in the data, or the
            data is not that of which the sample was chosen.
    """
    now = state(path)
    current = seal(path)
    opened = _opened(now.entries)
    if opened is None or opened.content["fingerprint"] != current.fingerprint:
        raise TutelageError.at(
            str(path), "changed since its sample was chosen", f"run tutelage review {path} once more"
        )
    if now.pending:
        raise TutelageError.at(str(path), f"{len(now.pending)} rows of the sample are not decided", "decide them first")
    rejected = {found for found, content in now.decided.items() if not all(content[aspect] for aspect in ASPECTS)}
    if rejected:
        rows = [number for number, found in enumerate(fingerprints(path), 1) if found in rejected]
        raise TutelageError.at(
            str(path),
            f"rows that were found wrong are still there: {', '.join(map(str, rows[:20]))}",
            "mend them or leave them out, and review what you changed",
        )
    content = {
        "statement": "accurate, unbiased, appropriate",
        "seal": msgspec.to_builtins(current),
        "decided": len(now.decided),
    }
    (entry,) = append(record_path(path), who, "signature", [content])
    return entry


def _opened(entries: list[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind == "opened"), None)
