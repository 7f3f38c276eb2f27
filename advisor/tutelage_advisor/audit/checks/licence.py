"""Whether it is known what the data may be used for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tutelage.datacheck import DataCheck, Example, Finding, Flags

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIELDS = ("license", "licence", "licenses", "licence_id", "license_id")
_RESTRICTED = re.compile(
    r"\bnc\b|non-?commercial|\bnd\b|no-?deriv|research[- ]only|proprietary|all rights reserved", re.IGNORECASE
)


class Licence(DataCheck):
    """Rows without a licence field, and rows whose licence restricts use."""

    name = "licence"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.missing = Flags()
        self.restricted = Flags()
        self.seen = 0

    def look(self, example: Example) -> None:
        """Look for a licence in the row or in its `meta` or `metadata`."""
        self.seen += 1
        licence = _licence(example.row) or next(
            (found for key in ("meta", "metadata") if (found := _licence(example.row.get(key)))), ""
        )
        if not licence:
            self.missing.add(example, "no licence field")
        elif _RESTRICTED.search(licence.replace("_", "-").replace("-", " ")) or _RESTRICTED.search(licence):
            self.restricted.add(example, licence)

    def findings(self) -> Iterable[Finding]:
        """A warning when some rows have a licence and others not; a note when none has."""
        if self.missing:
            none = len(self.missing) == self.seen
            which = "no row says" if none else f"{len(self.missing)} rows don't say"
            yield Finding(
                check=self.name,
                severity="note" if none else "warning",
                message=f"{which} under which licence it may be used (a field `license`)",
                advice="write down where the data is from and what its licence allows, in rows or data card",
                rows=self.missing.rows,
                evidence=[] if none else self.missing.evidence,
            )
        if self.restricted:
            yield self.restricted.finding(
                self.name,
                severity="warning",
                message=f"{len(self.restricted)} rows have a licence that restricts use (such as non-commercial)",
                advice="make sure that your use is allowed, or leave them out",
            )


def _licence(fields: object) -> str:
    if not isinstance(fields, dict):
        return ""
    return next((str(fields[name]).strip() for name in _FIELDS if fields.get(name)), "")
