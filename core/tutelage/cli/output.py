"""What all commands share in printing: JSON, errors, tables, sizes and times."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from tutelage.errors import Problem

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add `--json`, which every command that prints has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def print_json(value: Any) -> None:
    """Print a value (msgspec structs included) as one line of JSON; a reader that has gone away is no error."""
    import msgspec

    try:
        click.echo(msgspec.json.encode(value, enc_hook=str).decode())
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Send what is still printed nowhere, once the reader of a pipe has gone away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_problems(problems: Iterable[Problem]) -> None:
    """Print problems to stderr, a line each."""
    for problem in problems:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {problem}", err=True)


def report_error(error: Exception, as_json: bool) -> int:
    """Tell a person (and, with `--json`, a script) what went wrong, and return the exit code."""
    from tutelage.errors import Problem, RunWaiting, TutelageError

    if isinstance(error, TutelageError):
        problems, code = error.problems, error.exit_code
    elif isinstance(error, click.ClickException):
        problems, code = [Problem(place="", wrong=error.format_message())], error.exit_code
    else:
        problems, code = [_unexpected(error)], 1
    if as_json:
        print_json({"error": {"problems": problems}})
    if isinstance(error, click.ClickException):
        error.show()
    elif isinstance(error, RunWaiting):
        for problem in problems:
            click.echo(str(problem), err=True)
    else:
        print_problems(problems)
    return code


def _unexpected(error: Exception) -> Problem:
    import tempfile
    import traceback

    from tutelage.errors import Problem

    with tempfile.NamedTemporaryFile(
        "w", prefix="tutelage-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    said = " ".join(f"{type(error).__name__}: {error}".split())
    if len(said) > 200:
        said = said[:199] + "…"
    return Problem(
        place="tutelage", wrong=f"an error that should not be: {said}", fix=f"the trace is in {file.name}; report it"
    )


def table(columns: list[str], rows: list[list[str]], right: Collection[str] = (), folds: Collection[str] = ()) -> None:
    """Print a table: aligned on a terminal, separated by tabs where a script reads it.

    `right` names columns of numbers; `folds` those that may take several lines where the terminal is narrow.
    """
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if shutil.get_terminal_size().columns < 60:  # too narrow for columns: a block of lines a row
        click.echo(
            "\n\n".join("\n".join(f"{name}: {cell}" for name, cell in zip(columns, row, strict=True)) for row in rows)
        )
        return
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        shown.add_column(column, justify=justify, overflow="fold", no_wrap=bool(folds) and column not in folds)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console().print(shown)


def is_terminal(stream: IO[str]) -> bool:
    """Whether a person looks at a stream as it is written (TERM=dumb and CI logs are no terminals)."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
