"""`tutelage submit --local`: the same plan and the same question, then the recipe is trained here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tutelage.cli.output import print_json

ELSEWHERE = {
    "launcher": "--on",
    "nodes": "--nodes",
    "gpus": "--gpus",
    "cpus": "--cpus",
    "memory": "--memory",
    "minutes": "--minutes",
    "priority": "--priority",
    "after": "--after",
    "retries": "--retries",
    "name": "--name",
    "labels": "--label",
    "sweep": "--sweep",
    "idempotency_key": "--idempotency-key",
}
"Options that mean nothing without a server."


def train_here(recipe: Path, overrides: list[str], as_json: bool, options: dict[str, Any]) -> int:
    """Show the plan, ask where it costs or looks unwise, and train in this process.

    Raises:
        TutelageError: with every problem of the recipe, and where options need a server.
        click.Abort: when the answer is no.
    """
    from tutelage.cli.train import train
    from tutelage.errors import Problem, TutelageError
    from tutelage_server.cli.calling import pairs
    from tutelage_server.cli.plan_page import print_plan
    from tutelage_server.cli.submit import _ask
    from tutelage_server.cli.wishes import secrets

    problems = [
        Problem(place=option, wrong="needs a server", fix="leave it out, or --local")
        for name, option in ELSEWHERE.items()
        if options[name] not in (None, (), "")
    ]
    if problems:
        raise TutelageError(problems)
    environment = {**pairs(options["environment"], "--env"), **secrets(options["secrets"])}
    plan = {"estimate": _estimate(recipe, overrides), "notes": [], "problems": []}
    _check_cost(plan, options["max_cost"])
    if not as_json or options["dry_run"]:
        if as_json:
            print_json(plan)
        else:
            print_plan(plan)
    if options["dry_run"]:
        return 0
    _ask(plan, options["yes"])
    os.environ.update(environment)
    context = click.get_current_context()
    code: int = context.invoke(train, recipe=recipe, overrides=tuple(overrides), out=None, as_json=as_json)
    return code


def _estimate(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    import msgspec

    from tutelage_advisor.catalog import load
    from tutelage_advisor.estimates.recipes import estimate_recipe

    found: dict[str, Any] = msgspec.to_builtins(estimate_recipe(recipe, {}, load(None), overrides))
    return found


def _check_cost(plan: dict[str, Any], most: float | None) -> None:
    from tutelage.errors import TutelageError

    usd = plan["estimate"].get("usd")
    if most is not None and usd is not None and usd > most:
        raise TutelageError.at(
            "--max-cost", f"it may cost {usd:.2f} USD, and {most:.2f} are allowed", "make it smaller"
        )
