"""An append-only record, one JSON object a line, each holding the hash of the one before.

Changing, removing, adding or reordering a line breaks every hash after it. Cutting lines off the end, or writing the
whole record anew, can't be seen from the record alone: keep the hash of its last entry (its head) elsewhere, as the
data card does.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from filelock import FileLock

from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from pathlib import Path

START = "0" * 64
"What the first entry names as the hash before it."

Kind = Literal["opened", "decision", "signature"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line: who did what, when, and the SHA-256 of all that together with the hash of the line before."""

    number: int
    previous: str
    at: str
    who: str
    kind: Kind
    content: dict[str, Any]
    hash: str


class TamperedError(Exception):
    """A record that was tampered with; the message names the line and what is wrong there."""


def digest(fields: dict[str, Any]) -> str:
    """SHA-256 of an entry's fields but for its hash, as JSON with sorted keys and no spaces."""
    return hashlib.sha256(_canonical({key: fields[key] for key in fields if key != "hash"})).hexdigest()


def read(path: Path) -> list[Entry]:
    """All entries, each checked to be byte for byte what was appended.

    Raises:
        TamperedError: at the first line that is not.
    """
    entries: list[Entry] = []
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        raise TamperedError("the last line was cut off")
    for number, line in enumerate(data.splitlines(), 1):
        entries.append(_checked(line, number, entries[-1].hash if entries else START))
    return entries


def append(path: Path, who: str, kind: Kind, contents: list[dict[str, Any]]) -> list[Entry]:
    """Add entries at the end, flushed to disk; processes take turns.

    Raises:
        TutelageError: when the record was tampered with, or can't be written.
    """
    try:
        with FileLock(f"{path}.lock"):
            entries = read(path) if path.exists() else []
            added: list[Entry] = []
            for content in contents:
                last = added[-1] if added else entries[-1] if entries else None
                added.append(_next(last, who, kind, content))
            with path.open("ab") as file:
                file.writelines(_canonical(msgspec.structs.asdict(entry)) + b"\n" for entry in added)
                file.flush()
                os.fsync(file.fileno())
            return added
    except TamperedError as error:
        raise TutelageError.at(
            str(path), f"was tampered with: {error}", "nothing is added; find out who changed it"
        ) from None
    except OSError as error:
        raise TutelageError.at(str(path), f"can't be written: {error.strerror}") from None


def _next(last: Entry | None, who: str, kind: Kind, content: dict[str, Any]) -> Entry:
    fields = {
        "number": last.number + 1 if last else 1,
        "previous": last.hash if last else START,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": who,
        "kind": kind,
        "content": content,
    }
    return msgspec.convert({**fields, "hash": digest(fields)}, Entry)


def _checked(line: bytes, number: int, previous: str) -> Entry:
    try:
        fields = json.loads(line)
        entry = msgspec.convert(fields, Entry)
    except (ValueError, RecursionError, msgspec.ValidationError):
        raise TamperedError(f"line {number} is not an entry") from None
    if line != _canonical(fields):
        raise TamperedError(f"line {number} is not written as it was appended")
    if entry.number != number:
        raise TamperedError(f"line {number} is entry {entry.number}: entries were added, removed or reordered")
    if entry.previous != previous:
        raise TamperedError(f"entry {number} does not follow the entry before it")
    if entry.hash != digest(fields):
        raise TamperedError(f"entry {number} was changed")
    return entry


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
