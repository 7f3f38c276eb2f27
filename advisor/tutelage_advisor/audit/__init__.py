"""Is the data fit? Finds what is wrong with a dataset by row, and says whether it is ready to tune on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tutelage_advisor.audit.fix import Fixed, fix
from tutelage_advisor.audit.reading import about_rows
from tutelage_advisor.audit.report import Audit, Readiness
from tutelage_advisor.audit.runner import Options, audit

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Audit", "Fixed", "Options", "Readiness", "audit", "fix", "readiness"]


ENOUGH = 5_000
"Rows that a verdict is reached from: a share of 3% among them is known to within half a percent."


def readiness(path: str | Path, most: int = ENOUGH) -> Readiness:
    """Audit a dataset with default settings and return its verdict, usable examples, quality and reasons.

    Of more than `most` rows the first ones are looked at, and the number of usable examples is carried over to all.

    Raises:
        TutelageError: when the data can't be read at all.
    """
    found = audit(path, Options(limit=most))
    if found.whole:
        return found.readiness
    rows = about_rows(path, most)
    said = f"judged by the first {most:,} of about {rows:,} rows; tutelage audit looks at all"
    return msgspec.structs.replace(
        found.readiness,
        examples=found.readiness.examples * rows // found.rows,
        reasons=[*found.readiness.reasons, said],
    )
