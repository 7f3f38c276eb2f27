"""`tutelage runs`: list, show, compare, prune."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tutelage.cli.output import json_option, print_json, table

if TYPE_CHECKING:
    from tutelage.runs.folder import RunFolder


@click.group()
def runs() -> None:
    """List, show, compare and prune the runs below $TUTELAGE_RUNS or ./runs."""


@runs.command("list")
@json_option
def list_runs(as_json: bool) -> None:
    """List runs, newest first."""
    from tutelage.runs.listing import all_runs, runs_root, summary_of
    from tutelage.runs.words import duration, number, size

    summaries = [summary_of(run) for run in all_runs()]
    if as_json:
        print_json(summaries)
        return
    if not summaries:
        click.echo(f"no runs below {runs_root()}; start one with: tutelage train RECIPE", err=True)
        return
    rows = [
        [
            run.name,
            run.state,
            run.created[:16].replace("T", " "),
            run.steps,
            number(run.loss),
            number(run.eval_loss),
            duration(run.seconds),
            size(run.size),
            ", ".join(run.stages),
        ]
        for run in summaries
    ]
    columns = ["run", "state", "created (UTC)", "steps", "loss", "eval", "time", "size", "stages"]
    table(columns, rows, right={"steps", "loss", "eval", "time", "size"}, folds={"run", "stages"})


@runs.command()
@click.argument("run")
@json_option
def show(run: str, as_json: bool) -> None:
    """Show one RUN: its state, versions, stages, figures and what happened."""
    import msgspec

    from tutelage.cli.summary import print_summary
    from tutelage.runs.history import read_history
    from tutelage.runs.listing import find_run, state_of, summary_of

    found = find_run(run)
    if as_json:
        print_json(
            {
                **msgspec.to_builtins(found.record),
                **found.outcome(),
                "state": state_of(found),
                "size": summary_of(found).size,
            }
        )
        return
    record = found.record
    reason = f" ({record.reason})" if record.reason else ""
    click.echo(f"{record.name}: {state_of(found)}{reason}")
    click.echo(f"created {record.created} by tutelage {record.tutelage} on {record.platform}")
    click.echo("versions: " + ", ".join(f"{name} {version}" for name, version in record.versions.items()))
    for stage, sources in record.data.items():
        for source, fingerprint in sources.items():
            click.echo(f"data of {stage}: {source} {fingerprint}")
    for history in read_history(found).values():
        for notice in history.notices:
            click.echo(f"note in {history.name}: {notice}")
    print_summary(found)


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@json_option
def compare(names: tuple[str, ...], as_json: bool) -> None:
    """Show which settings of two or more runs differ, and their metrics side by side."""
    from tutelage.runs import listing
    from tutelage.runs.words import number

    if len(names) < 2:
        raise click.UsageError("name two runs or more")
    found = listing.compare([listing.find_run(name) for name in names])
    if as_json:
        print_json(found)
        return
    rows = [[row.field, *(_setting(value) for value in row.values)] for row in found.settings]
    if rows:
        table(["setting", *found.runs], rows)
    else:
        click.echo("all settings are the same")
    click.echo()
    table(["metric", *found.runs], [[row.field, *(number(value) for value in row.values)] for row in found.metrics])


@runs.command()
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--unfinished", is_flag=True, help="Also of runs that failed or stopped; these can't be resumed then.")
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def prune(names: tuple[str, ...], unfinished: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove checkpoints of finished runs (all, or those named). Artifacts, records and reports stay."""
    from tutelage.runs import listing
    from tutelage.runs.words import size

    chosen: list[RunFolder] = [listing.find_run(name) for name in names] if names else listing.all_runs()
    found = listing.prunable(chosen, unfinished)
    total = sum(item.size for item in found)
    if not as_json:
        for item in found:
            click.echo(f"{item.folder}  {size(item.size)}")
    if found and not dry_run:
        if not yes and not _agreed(f"Remove these checkpoints ({size(total)})?"):
            raise click.Abort
        listing.prune(found)
    if as_json:
        print_json({"removed": not dry_run, "bytes": total, "folders": found})
    elif not found:
        click.echo("nothing to remove")
    else:
        click.echo(f"{'would free' if dry_run else 'freed'} {size(total)}")


def _agreed(question: str) -> bool:
    """Ask, where there is someone to ask.

    Raises:
        TutelageError: when the input ends without an answer, as it does where a script has none.
    """
    from tutelage.errors import TutelageError

    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        wrong = "there is no one to ask, and nothing was removed"
        raise TutelageError.at("tutelage runs prune", wrong, "add --yes to remove without asking") from None


def _setting(value: object) -> str:
    """A setting exactly as a recipe has it."""
    import json

    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
