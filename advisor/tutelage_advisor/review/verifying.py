"""Checks a review: that its record was not tampered with, and that the data is still what was signed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage_advisor.review.chain import Entry, TamperedError, read
from tutelage_advisor.review.reviewing import record_path
from tutelage_advisor.review.seal import Seal, differences, seal


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed, and when."""

    who: str
    at: str


class Verification(msgspec.Struct, kw_only=True):
    """Whether signed data is untouched. `head` is the hash of the record's last entry: keep it elsewhere."""

    ok: bool
    problems: list[str]
    entries: int = 0
    head: str = ""
    signatures: list[Signature] = []


def card_path(path: str | Path) -> Path:
    """Where the data card of a dataset lies: beside it, as `NAME.card.md`."""
    path = Path(path)
    return path.with_name(f"{path.name}.card.md")


def verify(path: str | Path, head: str = "") -> Verification:
    """Check record and data. `head`, and the one that a data card beside the data names, must be in the record.

    Raises:
        TutelageError: when the data itself can't be read.
    """
    record = record_path(path)
    if not record.exists():
        return Verification(ok=False, problems=[f"{path} has no review: {record.name} is not there"])
    try:
        entries = read(record)
    except (TamperedError, OSError) as error:
        return Verification(ok=False, problems=[f"the record was tampered with: {error}"])
    problems = _heads(entries, path, head)
    signed = next((entry for entry in reversed(entries) if entry.kind == "signature"), None)
    if signed is None:
        problems.append("nobody has signed yet")
    else:
        problems += _changes(signed, path)
        later = [entry for entry in entries[signed.number :] if entry.kind != "signature"]
        if later:
            problems.append(f"the review was opened again by {later[0].who} after the signature, and not signed since")
    return Verification(
        ok=not problems,
        problems=problems,
        entries=len(entries),
        head=entries[-1].hash if entries else "",
        signatures=[Signature(who=entry.who, at=entry.at) for entry in entries if entry.kind == "signature"],
    )


def is_signed(path: str | Path) -> bool:
    """Whether people signed this data and nothing was changed since."""
    return record_path(path).exists() and verify(path).ok


def unsigned(path: str | Path, place: str) -> list[Problem]:
    """What `governance: reviewed` has to say of a dataset; nothing when it is signed and untouched."""
    try:
        found = verify(path).problems
    except TutelageError as error:
        return error.problems
    fix = f"tutelage review {path}, then tutelage review sign {path}"
    return [Problem(place=place, wrong=f"{path} is not signed as it is: {problem}", fix=fix) for problem in found]


def _heads(entries: list[Entry], path: str | Path, head: str) -> list[str]:
    hashes = {entry.hash for entry in entries}
    problems = []
    if head and head not in hashes:
        problems.append(f"the record no longer holds the entry {head[:12]}…: it was cut or written anew")
    card = card_path(path)
    if card.exists():
        found = re.search(
            r"^review_head: ([0-9a-f]{64})$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if found and found.group(1) not in hashes:
            problems.append(f"the record no longer holds the entry that {card.name} names: it was cut or written anew")
    return problems


def _changes(signed: Entry, path: str | Path) -> list[str]:
    before, now = msgspec.convert(signed.content["seal"], Seal), seal(path)
    found = differences(before, now)
    return [f"the seal is broken: {difference}" for difference in found]
