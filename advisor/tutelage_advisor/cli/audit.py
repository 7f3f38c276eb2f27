"""`tutelage audit`: what is wrong with a dataset, and whether it is ready."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutelage.cli.output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tutelage_advisor.audit import Audit

_held_out = click.option(
    "--eval", "held_out", type=click.Path(path_type=Path), help="The evaluation set, to find rows that leaked."
)
_skip = click.option("--skip", multiple=True, metavar="CHECK", help="Leave a check out (may be repeated).")
_limit = click.option(
    "--limit", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Rows to look at, at most."
)
_COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}
_VERDICTS = {"ready": "green", "needs-work": "yellow", "insufficient": "red"}


@click.command()
@click.argument("data")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Prompts seen in production: a data file, or text with one a line.",
)
@_held_out
@click.option(
    "--max-length", type=click.IntRange(min=8), default=1024, show_default=True, help="As in the recipe's trainer."
)
@click.option("--tokenizer", default="", help="A tokenizer.json, or its folder, to count tokens exactly.")
@_skip
@_limit
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML page, complete in one file.")
@json_option
def audit(
    data: str,
    against: Path | None,
    held_out: Path | None,
    max_length: int,
    tokenizer: str,
    skip: tuple[str, ...],
    limit: int,
    report: Path | None,
    as_json: bool,
) -> None:
    """Find what is wrong with DATA (a file, a folder, or hub:OWNER/NAME), row by row, and say whether it is ready.

    Files of a folder whose names begin with eval, test, valid or dev are taken as the evaluation set.
    """
    from tutelage_advisor.audit import Options
    from tutelage_advisor.audit import audit as run

    settings = {} if "too-long" in skip else {"too-long": {"max_length": max_length, "tokenizer": tokenizer}}
    options = Options(against=against, held_out=held_out, settings=settings, skip=skip, limit=limit)
    found = with_progress(lambda progress: run(data, options, progress))
    if report:
        write_page(found, report)
    if as_json:
        print_json(found)
        return
    show(found)
    if report:
        click.echo(f"\nThe report is in {report}")


@click.command()
@click.argument("data")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A new .jsonl file for the rows that are kept."
)
@_held_out
@_skip
@_limit
@json_option
def fix(data: str, out: Path, held_out: Path | None, skip: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Audit DATA, and write the rows that are safe to keep into a new file. DATA itself is never changed.

    Left out is what an audit calls safe to leave out: rows that can't be read, have wrong roles or no answer, that
    repeat an earlier row, or that the evaluation set has too.
    """
    from tutelage_advisor.audit import Options, audit
    from tutelage_advisor.audit import fix as run

    options = Options(held_out=held_out, skip=skip, limit=limit)
    fixed = run(data, with_progress(lambda progress: audit(data, options, progress)), out)
    if as_json:
        print_json(fixed)
        return
    click.echo(f"{fixed.kept} rows were written to {fixed.out}; {fixed.dropped} were left out")
    for check, rows in fixed.by_check.items():
        click.echo(f"  {check}: {rows}")


def with_progress(work: Callable[[Callable[[int], None]], Audit]) -> Audit:
    """Run an audit, counting rows on a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows looked at", total=None)
        return work(lambda rows: bar.update(task, completed=rows))


def write_page(found: Audit, path: Path) -> None:
    """Write the HTML report.

    Raises:
        TutelageError: when it can't be written.
    """
    from tutelage.errors import TutelageError
    from tutelage.runs.files import write_atomically
    from tutelage_advisor.audit.html import page

    try:
        write_atomically(path, page(found))
    except OSError as error:
        raise TutelageError.at(
            str(path), f"can't be written: {error.strerror}", "name a file in a folder that is there"
        ) from None


def show(found: Audit) -> None:
    """Print an audit for a person."""
    readiness = found.readiness
    verdict = click.style(readiness.verdict.replace("-", " "), fg=_VERDICTS[readiness.verdict], bold=True)
    click.echo(
        f"{found.data}: {verdict}; {readiness.examples} usable of {found.rows} rows, quality {readiness.quality}"
    )
    if not found.whole:
        click.echo(f"  only the first {found.rows} rows were looked at (--limit)")
    for reason in readiness.reasons:
        click.echo(f"  - {reason}")
    for finding in found.findings:
        tag = click.style(f"{finding.severity:8}", fg=_COLOURS[finding.severity])
        click.echo(f"\n{tag}{click.style(finding.check, bold=True)}: {finding.message}")
        for item in finding.evidence[:3]:
            click.echo(f"        {item.place}: {item.shown}")
        safe = f" (safe: tutelage data fix {shlex.quote(found.data)} --out FILE does it)" if finding.fix else ""
        click.echo(f"        -> {finding.advice}{safe}")
    for name, why in found.failed_checks.items():
        click.echo(f"\n{click.style('not run ', fg='red')}{name}: {why}")
