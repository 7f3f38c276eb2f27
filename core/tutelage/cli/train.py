"""`tutelage check`, `train` and `resume`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json, print_problems, report_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from tutelage.cli.views import View

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Override a field: stages.tune.adapter.rank=8."
)
EXIT_CODES = {"succeeded": 0, "stopped": 130, "waiting": 3}


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@set_option
@json_option
def check(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Find everything that is wrong with RECIPE, in seconds; nothing is written.

    Exit code 0 when it can be trained, 2 when something is to be mended.
    """
    from tutelage import api
    from tutelage.cli.views import data_sentence
    from tutelage.errors import TutelageError

    try:
        report = api.check(recipe, overrides=list(overrides))
        problems, notes, data = report.problems, report.notes, report.data
    except TutelageError as error:
        problems, notes, data = error.problems, [], {}
    if as_json:
        print_json({"ok": not problems, "problems": problems, "notes": notes, "data": data})
    else:
        for stage, figures in data.items():
            click.echo(f"{stage}: data: {data_sentence(figures)}")
        for note in notes:
            click.echo(f"note: {note}")
        if not problems:
            again = shlex.join([str(recipe), *(f"--set={assignment}" for assignment in overrides)])
            click.echo(f"{recipe} is fine; go on with: tutelage train {again}")
    print_problems(problems)
    return 2 if problems else 0


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@set_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The run's folder; by default a new one below $TUTELAGE_RUNS or ./runs.",
)
@json_option
def train(recipe: Path, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> int:
    """Run RECIPE (YAML, TOML or JSON), after checking it.

    With --json every event is a line, and the last line says what the run made.
    """
    from tutelage import api

    return _follow(lambda listener: api.train(recipe, overrides=list(overrides), out=out, listener=listener), as_json)


@click.command()
@click.argument("run")
@click.option("--allow-changes", is_flag=True, help="Go on although data or versions changed since the run began.")
@set_option
@json_option
def resume(run: str, allow_changes: bool, overrides: tuple[str, ...], as_json: bool) -> int:
    """Go on with RUN (a folder, or a name from `tutelage runs list`) from its last checkpoint.

    With --set the recipe is changed: finished stages before the change are kept, the others begin anew.
    """
    from tutelage import api
    from tutelage.runs.listing import find_run

    folder = find_run(run).path
    return _follow(lambda listener: api.resume(folder, allow_changes, listener, list(overrides)), as_json, str(folder))


def _follow(work: Callable[[View], Any], as_json: bool, run: str = "") -> int:
    """Show a run as it goes on, then what it made; also when it fails on the way."""
    from tutelage.cli.summary import print_summary
    from tutelage.cli.views import view
    from tutelage.errors import RunFailed, RunStopped, RunWaiting, TutelageError
    from tutelage.runs.folder import RunFolder

    failure: Exception | None = None
    with view(as_json) as show:

        def listen(event: dict[str, Any]) -> None:
            nonlocal run
            if event["event"] == "run_started":
                run = str(event.get("run") or run)
            show(event)

        try:
            work(listen)
        except TutelageError as error:
            if not run or not isinstance(error, RunFailed | RunStopped | RunWaiting):
                raise  # it never began: there is nothing to sum up
            failure = error
    code = report_error(failure, as_json) if failure else 0
    folder = RunFolder.open(Path(run))
    if as_json:
        print_json(folder.outcome())
    else:
        print_summary(folder)
    return code or EXIT_CODES.get(folder.record.state, 1)
