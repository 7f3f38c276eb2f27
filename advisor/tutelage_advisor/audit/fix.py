"""Applies what is safe: writes the rows that no finding tells to drop into a new file."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tutelage.errors import TutelageError
from tutelage_advisor.audit.reading import raw_rows, split_source

if TYPE_CHECKING:
    from tutelage_advisor.audit.report import Audit


class Fixed(msgspec.Struct, kw_only=True):
    """What `fix` did."""

    out: str
    kept: int
    dropped: int
    by_check: dict[str, int]


def fix(path: str | Path, report: Audit, out: Path) -> Fixed:
    """Write the rows of `path` that are safe to keep to `out`, as JSON Lines; nothing is ever changed in place.

    Raises:
        TutelageError: when `out` exists or is not .jsonl, or the audit did not see the whole data.
    """
    if out.suffix.lower() != ".jsonl":
        raise TutelageError.at(str(out), "is not a .jsonl file", "the mended rows are written as JSON Lines")
    if out.exists():
        raise TutelageError.at(str(out), "exists already", "name a new file; nothing is overwritten")
    if not out.parent.is_dir():
        raise TutelageError.at(str(out.parent), "no such folder", "make it first")
    if not report.whole:
        raise TutelageError.at(str(path), "was not looked at whole", "raise --limit to its number of rows")
    drop = {row for finding in report.findings if finding.fix == "drop" for row in finding.rows}
    reasons = Counter({f.check: len(f.rows) for f in report.findings if f.fix == "drop"})
    kept = _write_kept(path, drop, out)
    return Fixed(out=str(out), kept=kept, dropped=report.rows - kept, by_check=dict(reasons))


def _write_kept(path: str | Path, drop: set[int], out: Path) -> int:
    training, _ = split_source(path)
    encoder = msgspec.json.Encoder()
    kept = 0
    descriptor, beside = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for number, (_, row, _) in enumerate(raw_rows(training), 1):
                if number not in drop:
                    kept += 1
                    file.write(encoder.encode(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(out)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return kept
