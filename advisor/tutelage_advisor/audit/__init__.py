"""Is the data fit? Finds what is wrong with a dataset by row, and says whether it is ready to tune on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage_advisor.audit.fix import Fixed, fix
from tutelage_advisor.audit.report import Audit, Readiness
from tutelage_advisor.audit.runner import Options, audit

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Audit", "Fixed", "Options", "Readiness", "audit", "fix", "readiness"]


def readiness(path: str | Path) -> Readiness:
    """Audit a dataset with default settings and return its verdict, usable examples, quality and reasons.

    Raises:
        TutelageError: when the data can't be read at all.
    """
    return audit(path).readiness
