"""Runs all checks over a dataset in one pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import msgspec

from tutelage.config import convert, did_you_mean
from tutelage.datacheck import DataCheck, Example, Finding, excerpt
from tutelage.errors import TutelageError
from tutelage.plugins import host
from tutelage_advisor.audit.private import redacted
from tutelage_advisor.audit.reading import examples, open_source, split_source
from tutelage_advisor.audit.report import Audit
from tutelage_advisor.audit.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MOST_ROWS = 1_000_000
"Looked at by default: a check keeps some hundred bytes of each row, and a verdict needs no more."
_SEVERITIES = ("error", "warning", "note")


class Options(msgspec.Struct, kw_only=True):
    """What to compare the data with, and how checks are set."""

    held_out: Path | None = None
    "The evaluation set, to find leakage."
    against: Path | None = None
    "Prompts seen in production."
    settings: Mapping[str, Mapping[str, Any]] = {}
    "Settings of checks by name, such as `{'too-long': {'max_length': 512}}`."
    skip: tuple[str, ...] = ()
    limit: int = MOST_ROWS


def audit(path: str | Path, options: Options | None = None, progress: Callable[[int], None] | None = None) -> Audit:
    """Look for everything that the installed checks know, and judge whether the data is ready.

    `progress` is called with the number of rows seen so far. A check that breaks is named in `failed_checks` and does
    not stop the others.

    Raises:
        TutelageError: when the data can't be read at all, or holds no row, or a check's settings are wrong.
    """
    options = options or Options()
    start = time.perf_counter()
    running = _Running(_checks(options))
    training, held_out = split_source(path)
    for source in (held_out, open_source(options.held_out) if options.held_out else None):
        if source:
            running.show("look_held_out", examples(source, options.limit))
    if options.against:
        running.show("look_production", prompts(options.against))
    rows = running.look(examples(training, options.limit + 1), options.limit, progress)
    if not rows:
        raise TutelageError.at(str(path), "holds no rows", "is it the right file?")
    findings = running.findings()
    return Audit(
        data=str(path),
        rows=min(rows, options.limit),
        whole=rows <= options.limit,
        readiness=judge(findings, min(rows, options.limit), _is_reviewed(path), tuple(running.failed)),
        findings=findings,
        broken=running.broken,
        failed_checks=running.failed,
        checks=[name for name in running.checks if name not in running.failed],
        seconds=round(time.perf_counter() - start, 3),
    )


def prompts(path: Path) -> Iterator[Example]:
    """Production's prompts: a data file (whose answers may be missing), or a text file with a prompt a line.

    Raises:
        TutelageError: when it can't be read, or a row holds no prompt.
    """
    if path.suffix.lower() in (".txt", ".log"):
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        place = f"{path.name} line {number}"
                        yield Example(number=number, place=place, row={}, turns=[("user", line.strip())])
        except (OSError, UnicodeDecodeError):
            raise TutelageError.at(str(path), "can't be read as UTF-8 text", "give prompts, one a line") from None
        return
    for example in examples(open_source(path)):
        asked = [(role, text) for role, text in example.turns if role in ("system", "user")]
        if not asked:
            asked = [
                ("user", str(example.row[key]))
                for key in ("prompt", "question", "input", "text")
                if example.row.get(key)
            ]
        if not asked:
            raise TutelageError.at(
                f"--against {example.place}", "holds no prompt", "give messages, or a field `prompt`"
            )
        yield msgspec.structs.replace(example, turns=asked, error="")


class _Running:
    """The checks of one audit; one that raises is put aside with its reason."""

    def __init__(self, checks: list[DataCheck]) -> None:
        self.checks = {check.name: check for check in checks}
        self.failed: dict[str, str] = {}
        self.rows = 0
        self.broken = 0

    def show(self, method: str, rows: Iterator[Example]) -> None:
        """Show rows of another set to the checks that look at it by `method`."""
        looking = [
            check for check in self.checks.values() if getattr(type(check), method) is not getattr(DataCheck, method)
        ]
        for example in rows:
            for check in looking:
                self._call(check, method, example)

    def look(self, rows: Iterator[Example], limit: int, progress: Callable[[int], None] | None) -> int:
        """Show the dataset's rows to all checks; returns how many there were, at most `limit` + 1."""
        for example in rows:
            self.rows += 1
            if self.rows > limit:
                break
            if progress and self.rows % 500 == 0:
                progress(self.rows)
            self.broken += bool(example.error)
            method = "look_broken" if example.error else "look"
            for check in self.checks.values():
                self._call(check, method, example)
        return self.rows

    def findings(self) -> list[Finding]:
        """All findings, the gravest and largest first."""
        found = [_shown(finding) for check in self.checks.values() for finding in self._call(check, "findings") or ()]
        return sorted(found, key=lambda finding: (_SEVERITIES.index(finding.severity), -len(finding.rows)))

    def _call(self, check: DataCheck, method: str, *arguments: Example) -> Any:
        if check.name in self.failed:
            return None
        try:
            result = getattr(check, method)(*arguments)
            return None if result is None else list(result)  # a generator of findings runs here, where it is guarded
        except TutelageError:
            raise
        except Exception as error:
            self.failed[check.name] = _reason(error)
            return None


def _checks(options: Options) -> list[DataCheck]:
    classes = cast("dict[str, type[DataCheck]]", host().classes("check"))
    for name in [*options.settings, *options.skip]:
        if name not in classes:
            raise TutelageError.at(name, "no check is called so", did_you_mean(name, list(classes)))
    return [
        made(convert(dict(options.settings.get(name, {})), made.Config, name))
        for name, made in classes.items()
        if name not in options.skip
    ]


def _shown(finding: Finding) -> Finding:
    """The finding with secrets and personal data masked, whichever check quotes them, and evidence cut to a line."""
    evidence = [msgspec.structs.replace(item, shown=excerpt(redacted(item.shown))) for item in finding.evidence]
    return msgspec.structs.replace(finding, message=redacted(finding.message), evidence=evidence)


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"needs the package {error.name}: pip install 'tutelage[audit]'"
    return f"{type(error).__name__}: {error}"


def _is_reviewed(path: str | Path) -> bool:
    from tutelage_advisor.review.verifying import is_signed

    return is_signed(path)
