"""Turns findings into a verdict: ready, needs work, or insufficient. The limits are data, with their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage_advisor.audit.report import Quality, Readiness, Verdict

if TYPE_CHECKING:
    from tutelage.datacheck import Finding

FEWEST = 100
"100 good examples are the least for a narrow task; 1,000 can do for a broad one (LIMA, Zhou et al. 2023)."
NOISY_SHARE = 0.03
"From this share of defective rows on a set counts as noisy."
BLOCKING_SHARE = 0.01
"Up to this share of rows an error is for `tutelage data fix` or a look, and does not make the whole set unready."

DEFECTS = frozenset(
    {
        "malformed",
        "roles",
        "mixed-formats",
        "empty-answer",
        "cut-answer",
        "exact-duplicates",
        "near-duplicates",
        "contradictions",
        "answer-format",
        "refusals",
    }
)
"Checks whose rows teach something wrong or nothing."
_NEVER_SMALL = frozenset({"secrets", "leakage"})


def judge(findings: list[Finding], rows: int, reviewed: bool = False, not_run: tuple[str, ...] = ()) -> Readiness:
    """The verdict for `rows` rows with these findings; `reviewed` when people signed for them.

    `not_run` are checks that broke: the verdict stands without them, and says so.

    What is safe to leave out (`fix`) is not counted as examples. Secrets and leakage make a set unready however few
    they are.
    """
    unusable = {row for finding in findings if finding.fix == "drop" for row in finding.rows}
    defective = unusable | {
        row for finding in findings if finding.check in DEFECTS and finding.severity != "note" for row in finding.rows
    }
    examples = rows - len(unusable)
    reasons = [f"{examples} of {rows} rows are usable"]
    noisy = len(defective) > NOISY_SHARE * rows
    if noisy:
        reasons.append(f"{len(defective) / rows:.1%} of rows are defective; over {NOISY_SHARE:.0%} counts as noisy")
    blocking = [finding for finding in findings if _blocks(finding, rows)]
    reasons += [f"{finding.check}: {finding.message}" for finding in blocking]
    verdict: Verdict = "ready"
    if examples < FEWEST:
        verdict = "insufficient"
        reasons.insert(0, f"{examples} usable examples are fewer than {FEWEST}, the least for a narrow task")
    elif noisy or blocking:
        verdict = "needs-work"
    else:
        reasons.append("no error that touches more than 1% of rows, no secret, no leakage")
    if not_run:
        reasons.append(f"checks that could not run: {', '.join(not_run)}")
    if reviewed:
        reasons.append("people signed that it is accurate, unbiased and appropriate")
    quality: Quality = "noisy" if noisy else "reviewed" if reviewed else "clean"
    return Readiness(verdict=verdict, examples=examples, quality=quality, reasons=reasons)


def _blocks(finding: Finding, rows: int) -> bool:
    if finding.severity != "error":
        return False
    return finding.check in _NEVER_SMALL or len(finding.rows) > BLOCKING_SHARE * rows
