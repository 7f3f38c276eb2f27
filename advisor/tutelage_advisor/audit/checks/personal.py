"""Rows that hold personal data or secrets of a checkable form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

import tutelage
from tutelage.datacheck import DataCheck, Example, Finding, Flags, Severity
from tutelage_advisor.audit.private import masked, personal, secrets

if TYPE_CHECKING:
    from collections.abc import Iterable

_GRAVE = ("payment cards", "US social security numbers", "IBANs")


class PersonalData(DataCheck):
    """E-mail addresses, phone numbers, payment cards, IBANs, US social security numbers, public IP addresses."""

    name = "personal-data"

    class Config(tutelage.Config):
        """How numbers are read."""

        region: Annotated[
            str, msgspec.Meta(pattern="^[A-Z]{2}$", description="Country whose phone numbers may come without +.")
        ] = "US"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags: dict[str, Flags] = {}

    def look(self, example: Example) -> None:
        """Look through all turns; a row is named once for each kind."""
        for kind, value in dict(personal(example.text, self.config.region)).items():
            self.flags.setdefault(kind, Flags()).add(example, masked(value))

    def findings(self) -> Iterable[Finding]:
        """One finding for each kind."""
        for kind, flags in self.flags.items():
            severity: Severity = "error" if kind in _GRAVE else "warning"
            advice = "replace them by made-up ones, unless these people agreed: a model can repeat what it saw"
            yield _finding(self.name, severity, kind, f"rows hold {kind}", advice, flags)


class Secrets(DataCheck):
    """Keys, tokens and passwords: known forms, and random-looking values that are called a password or a key."""

    name = "secrets"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self.flags: dict[str, Flags] = {}

    def look(self, example: Example) -> None:
        """Look through all turns; a row is named once for each kind."""
        for kind, value in dict(secrets(example.text)).items():
            self.flags.setdefault(kind, Flags()).add(example, masked(value))

    def findings(self) -> Iterable[Finding]:
        """One finding for each kind."""
        for kind, flags in self.flags.items():
            advice = "revoke it where it is real, and replace it by a made-up one"
            yield _finding(self.name, "error", kind, f"rows hold what looks like a secret: {kind}", advice, flags)


def _finding(check: str, severity: Severity, kind: str, what: str, advice: str, flags: Flags) -> Finding:
    return flags.finding(
        check=check,
        severity=severity,
        message=f"{len(flags)} {what}",
        advice=advice,
        figures={"kind": kind},
    )
