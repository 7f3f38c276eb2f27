"""`tutelage audit`: what is wrong with a dataset, and whether it is ready."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tutelage_advisor.audit import Audit

_COLOURS = {"error": "red", "warning": "yellow", "note": "blue"}
_VERDICTS = {"ready": "green", "needs-work": "yellow", "insufficient": "red"}


@click.command()
@click.argument("data")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Prompts seen in production: a data file, or text with one a line.",
)
@click.option(
    "--eval", "held_out", type=click.Path(path_type=Path), help="The evaluation set, to find rows that leaked."
)
@click.option(
    "--max-length", type=click.IntRange(min=8), default=1024, show_default=True, help="As in the recipe's trainer."
)
@click.option("--tokenizer", default="", help="A tokenizer.json, or its folder, to count tokens exactly.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave a check out (may be repeated).")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Rows to look at, at most."
)
@click.option(
    "--fix",
    "fix_to",
    type=click.Path(path_type=Path),
    help="Write the rows that are safe to keep to a new .jsonl file.",
)
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
    fix_to: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Find what is wrong with DATA (a file, a folder, or hub:OWNER/NAME), row by row, and say whether it is ready.

    Files of a folder whose names begin with eval, test, valid or dev are taken as the evaluation set.
    """
    from tutelage_advisor.audit import Options, fix
    from tutelage_advisor.audit import audit as run

    settings = {} if "too-long" in skip else {"too-long": {"max_length": max_length, "tokenizer": tokenizer}}
    options = Options(against=against, held_out=held_out, settings=settings, skip=skip, limit=limit)
    found = with_progress(lambda progress: run(data, options, progress))
    fixed = fix(data, found, fix_to) if fix_to else None
    if report:
        write_page(found, report)
    if as_json:
        print_json({**_plain(found), "fixed": fixed} if fixed else found)
        return
    show(found)
    if fixed:
        click.echo(f"\n{fixed.kept} rows were written to {fixed.out}; {fixed.dropped} were left out")
    if report:
        click.echo(f"\nThe report is in {report}")


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
        safe = " (safe: --fix OUT.jsonl does it)" if finding.fix else ""
        click.echo(f"        -> {finding.advice}{safe}")
    for name, why in found.failed_checks.items():
        click.echo(f"\n{click.style('not run ', fg='red')}{name}: {why}")


def _plain(found: Audit) -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(found)
