"""What all commands that call a server share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tutelage.errors import Problem
    from tutelage_server.client.client import Client

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

EXIT_CODES = {"succeeded": 0, "failed": 1, "waiting": 3, "cancelled": 4}
"How a command ends that waited for a job; 5 is a lost connection, 130 a job that was left to go on."


class Finite(click.FloatRange):
    """A range of numbers without the endless ones and NaN, which no comparison catches and no JSON holds."""

    name = "float range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A finite number of the range."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def server_option(command: F) -> F:
    """Add `--server`, which every command has that calls one."""
    text = "A server that `tutelage login` knows, by name or address; the default one otherwise."
    return click.option("--server", default="", metavar="NAME", help=text)(command)


def local_option(command: F) -> F:
    """Add `--local`, for what works without a server too."""
    return click.option("--local", is_flag=True, help="Without a server: the runs of this machine.")(command)


def connect(server: str) -> Client:
    """A client of the server that is meant, which says on stderr when it has to wait.

    Raises:
        TutelageError: when no server is known.
    """
    from tutelage_server.client.client import Client
    from tutelage_server.client.servers import find_server

    return Client(find_server(server), waiting=say)


def say(text: str) -> None:
    """A line for people, where it is in no script's way."""
    click.echo(text, err=True)


def each_of(names: tuple[str, ...], act: Callable[[str], T]) -> tuple[list[T], list[Problem]]:
    """What was done with each, and why with some nothing was: one that the server refuses keeps no other from it.

    Raises:
        ConnectionLost, and ServerRefused where the server failed
    """
    from tutelage_server.client.client import ServerRefused

    done: list[T] = []
    problems: list[Problem] = []
    for name in names:
        try:
            done.append(act(name))
        except ServerRefused as error:
            if error.exit_code != 2:
                raise
            problems += error.problems
    return done, problems


def agreed(question: str, place: str) -> bool:
    """Ask, where there is someone to ask.

    Raises:
        TutelageError: when there is not.
    """
    from tutelage.errors import TutelageError

    if not sys.stdin.isatty():
        raise TutelageError.at(
            place, "there is no one to ask, and nothing was done", "add --yes to do it without asking"
        )
    return click.confirm(question, err=True)


def pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping.

    Raises:
        TutelageError: when one has no `=`.
    """
    from tutelage.errors import TutelageError

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise TutelageError.at(f"{option} {text}", "is not NAME=VALUE")
        found[name] = value
    return found


def when(time: str | None) -> str:
    """A time for a table."""
    return (time or "–")[:16].replace("T", " ")
