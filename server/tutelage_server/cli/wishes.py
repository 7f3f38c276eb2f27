"""What the options of `tutelage submit` ask for, as the server takes it; and what it says of that, in their words."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from tutelage_server.cli.calling import pairs

RESOURCES = {"nodes": "nodes", "gpus": "gpus", "cpus": "cpus", "memory": "memory_gib", "minutes": "minutes"}
OPTIONS = {
    **{f"resources.{field}": f"--{name}" for name, field in RESOURCES.items()},
    **{"launcher": "--on", "priority": "--priority", "max_retries": "--retries", "max_usd": "--max-cost"},
    **{"after": "--after", "environment": "--env", "secrets": "--secret", "labels": "--label", "sweep": "--sweep"},
}
"The options that say what the server calls by these names; a recipe has no such fields."


def wishes(options: dict[str, Any]) -> dict[str, Any]:
    """All of a job but its recipe, as the server takes it."""
    resources = {field: options[name] for name, field in RESOURCES.items() if options[name] is not None}
    found = {
        "name": options["name"],
        "launcher": options["launcher"],
        "resources": resources,
        "priority": options["priority"],
        "after": [job.removeprefix("job:") for job in options["after"]],
        "max_retries": options["retries"],
        "environment": pairs(options["environment"], "--env"),
        "secrets": secrets(options["secrets"]),
        "labels": pairs(options["labels"], "--label"),
        "max_usd": options["max_cost"],
        "sweep": _sweep(options["sweep"]),
    }
    return {name: value for name, value in found.items() if value is not None and value not in ({}, [])}


def check_key(key: str) -> None:
    """Refuse an idempotency key that the server would refuse, before anything is sent.

    Raises:
        TutelageError
    """
    from tutelage.errors import TutelageError

    if len(key) > 200 or not key.isascii() or not key.isprintable():
        raise TutelageError.at("--idempotency-key", "is not 1 to 200 printable ASCII characters", "give a UUID")


def secrets(names: tuple[str, ...]) -> dict[str, str]:
    """Values from the environment, or asked for without showing them; never from arguments, which others can see.

    Raises:
        TutelageError: where a value is in the arguments, or there is none and nobody to ask.
    """
    from tutelage.errors import TutelageError

    values = {}
    for name in names:
        if "=" in name:
            place = f"--secret {name.partition('=')[0]}"
            fix = "set it as a variable, and give the name alone"
            raise TutelageError.at(place, "its value is in the arguments, where others can see it", fix)
        value = os.environ.get(name)
        if value is None:
            if not sys.stdin.isatty():
                raise TutelageError.at(f"--secret {name}", "is no variable here, and there is no one to ask")
            value = click.prompt(name, hide_input=True, err=True)
        values[name] = value
    return values


def _sweep(given: tuple[str, ...]) -> dict[str, list[Any]]:
    from tutelage.config import parse_yaml
    from tutelage.errors import TutelageError

    found: dict[str, list[Any]] = {}
    for field, text in pairs(given, "--sweep").items():
        try:
            found[field] = parse_yaml(text if text.startswith("[") else f"[{text}]")
        except ValueError as error:
            raise TutelageError.at(f"--sweep {field}", f"the values are malformed: {error}") from None
    return found


@contextlib.contextmanager
def said_as_options() -> Iterator[None]:
    """Lets what is wrong with a job be said of the option that asked for it.

    Raises:
        TutelageError: what was raised, its places as people wrote them.
    """
    from tutelage.errors import TutelageError

    try:
        yield
    except TutelageError as error:
        error.problems = [
            type(problem)(place=_option(problem.place), wrong=problem.wrong, fix=problem.fix)
            for problem in error.problems
        ]
        raise


def _option(place: str) -> str:
    if place in OPTIONS:
        return OPTIONS[place]
    field, _, name = place.partition(".")
    if field == "after":
        return OPTIONS[field]
    return f"{OPTIONS[field]} {name}" if name and field in OPTIONS else place
