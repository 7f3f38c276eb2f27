"""Verdicts by hand, at and around their limits."""

from __future__ import annotations

import pytest

from tutelage.datacheck import Finding, Fix, Severity
from tutelage_advisor.audit.verdict import judge


def finding(check: str, rows: int, severity: Severity = "error", fix: Fix = "", start: int = 1) -> Finding:
    return Finding(
        check=check, severity=severity, message="it is so", advice="", rows=list(range(start, start + rows)), fix=fix
    )


@pytest.mark.parametrize(
    ("findings", "rows", "verdict", "examples", "quality"),
    [
        ([], 99, "insufficient", 99, "clean"),
        ([], 100, "ready", 100, "clean"),
        ([finding("malformed", 1, fix="drop")], 100, "insufficient", 99, "clean"),
        ([finding("malformed", 30, fix="drop")], 1000, "needs-work", 970, "clean"),  # an error over 1%
        ([finding("malformed", 10, fix="drop")], 1000, "ready", 990, "clean"),  # at 1%, not over
        ([finding("near-duplicates", 30, "warning")], 1000, "ready", 1000, "clean"),  # at 3%, not over
        ([finding("near-duplicates", 31, "warning")], 1000, "needs-work", 1000, "noisy"),
        (
            [finding("near-duplicates", 20, "warning"), finding("refusals", 20, "warning", start=10)],
            1000,
            "ready",
            1000,
            "clean",
        ),
        ([finding("refusals", 400, "note")], 1000, "ready", 1000, "clean"),
        ([finding("secrets", 1)], 1000, "needs-work", 1000, "clean"),
        ([finding("leakage", 1, fix="drop")], 1000, "needs-work", 999, "clean"),
        ([finding("too-long", 500, "warning")], 1000, "ready", 1000, "clean"),
    ],
)
def test_verdicts(findings: list[Finding], rows: int, verdict: str, examples: int, quality: str) -> None:
    found = judge(findings, rows)
    assert (found.verdict, found.examples, found.quality) == (verdict, examples, quality)


def test_a_review_makes_clean_data_reviewed_but_not_noisy_data() -> None:
    assert judge([], 200, reviewed=True).quality == "reviewed"
    assert judge([finding("roles", 20)], 200, reviewed=True).quality == "noisy"


def test_checks_that_could_not_run_are_among_the_reasons() -> None:
    assert "checks that could not run: languages" in judge([], 200, not_run=("languages",)).reasons
