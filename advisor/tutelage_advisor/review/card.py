"""The data card: what a dataset is, what an audit found, who signed for it. Markdown with a YAML head."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import TutelageError
from tutelage.runs.files import write_atomically
from tutelage_advisor.review.reviewing import ASPECTS, entries_of, record_path
from tutelage_advisor.review.verifying import Verification, card_path, verify

if TYPE_CHECKING:
    from tutelage_advisor.audit.report import Audit

NOT_COVERED = (
    "The audit finds what has a form: no names, postal addresses or health data, no wrong facts, and toxicity and "
    "stereotypes only by lists of English words. People looked at a sample, not at every row."
)


def write_card(path: str | Path, report: Audit) -> Path:
    """Write the card beside the data and return its path. It holds the head of the review's record, which anchors it.

    Raises:
        TutelageError: when the record was tampered with, or the card can't be written.
    """
    out = card_path(path)
    verification = verify(path)
    if record_path(path).exists() and not verification.head:
        raise TutelageError.at(str(record_path(path)), verification.problems[0], "no card is written for it")
    try:
        write_atomically(out, _card(path, report, verification))
    except OSError as error:
        raise TutelageError.at(str(out), f"can't be written: {error.strerror}") from None
    return out


def _card(path: str | Path, report: Audit, verification: Verification) -> str:
    head = [f"review_head: {verification.head}"] if verification.head else []
    lines = [
        "---",
        f"pretty_name: {Path(path).name}",
        f"size_categories: [{_size(report.rows)}]",
        f"tutelage_verdict: {report.readiness.verdict}",
        f"reviewed: {'true' if verification.ok else 'false'}",
        *head,
        "---",
        "",
        f"# Data card: {Path(path).name}",
        "",
        f"{report.rows} rows, of which {report.readiness.examples} are usable; quality: {report.readiness.quality}.",
        "",
        "## Is it fit to tune on?",
        f"Verdict: **{report.readiness.verdict}**.",
        *[f"- {reason}" for reason in report.readiness.reasons],
        "",
        "## What the audit found",
        *(
            [f"- {finding.severity}: {finding.message}; {finding.advice}" for finding in report.findings]
            or ["- nothing"]
        ),
        "",
        "## Who signed for it",
        *_signed(path, verification),
        "",
        "## What nobody looked at",
        NOT_COVERED,
        "",
        "## Where it comes from, and what it may be used for",
        "To be written by whoever collected it: source, consent, licence, intended use.",
        "",
    ]
    return "\n".join(lines)


def _signed(path: str | Path, verification: Verification) -> list[str]:
    if not verification.head:
        return ["Nobody yet."]
    decisions = [entry for entry in entries_of(path) if entry.kind == "decision"]
    people = Counter(entry.who for entry in decisions)
    lines = [f"- {entry.who} signed at {entry.at} that it is {', '.join(ASPECTS)}" for entry in verification.signatures]
    lines += [f"- {who} decided on {count} rows" for who, count in people.most_common()]
    rejected = sum(not all(entry.content[aspect] for aspect in ASPECTS) for entry in decisions)
    lines.append(f"- {rejected} of {len(decisions)} decisions found something wrong")
    lines += [f"- not valid now: {problem}" for problem in verification.problems]
    lines.append(f"- head of the record: `{verification.head}`")
    return lines


def _size(rows: int) -> str:
    """The size as hub cards name it."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return name
    return "1M<n<10M" if rows < 10_000_000 else "10M<n<100M"
