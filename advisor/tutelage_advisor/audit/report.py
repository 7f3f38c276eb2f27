"""What an audit says: findings, figures, and whether the data is ready."""

from __future__ import annotations

from typing import Literal

import msgspec

from tutelage.datacheck import Finding

Verdict = Literal["ready", "needs-work", "insufficient"]
Quality = Literal["noisy", "clean", "reviewed"]


class Readiness(msgspec.Struct, kw_only=True):
    """Whether data is fit to tune on. `examples` counts usable rows: valid, not empty, not repeated."""

    verdict: Verdict
    examples: int
    quality: Quality
    reasons: list[str]


class Audit(msgspec.Struct, kw_only=True):
    """Everything an audit found in one dataset."""

    data: str
    rows: int
    whole: bool
    "False when there were more rows than were looked at."
    readiness: Readiness
    findings: list[Finding]
    broken: int
    "Rows that are no valid records."
    failed_checks: dict[str, str]
    "Checks that could not run, with the reason."
    checks: list[str]
    seconds: float
