"""`tutelage advise --interactive`: asks what still matters, the most important first, and nothing else."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from tutelage.errors import TutelageError
from tutelage_advisor.assumed import TRIED
from tutelage_advisor.sensitivity import importance
from tutelage_advisor.situation import Situation, Traffic, choices, describe, is_yes_or_no, situation_from
from tutelage_advisor.world import World


def ask(data: dict[str, Any]) -> dict[str, Any]:
    """Fill a situation by questions until no silent field can change the advice. Enter leaves a field to be assumed."""
    if not data.get("task"):
        data = {**data, "task": click.prompt("What shall the model do?", err=True)}
    situation, world, skipped = situation_from(data), World(), set[str]()
    while True:
        matters = importance(situation, world)
        open_fields = [field for field in matters if matters[field] > 0 and field not in skipped]
        if not open_fields:
            return _plain(situation)
        field = max(open_fields, key=lambda name: matters[name])
        answer = _question(situation, field, matters[field], world)
        if answer is None:
            skipped.add(field)
        else:
            situation = answer


def _question(situation: Situation, field: str, share: float, world: World) -> Situation | None:
    """Ask for one field until the answer is valid; None where the person doesn't know."""
    words = ("yes", "no") if is_yes_or_no(field) else choices(field)
    hint = " | ".join(words) or _example(field)
    while True:
        shown = f"{describe(field)}\n  {field} [{hint}] (changes the advice in {share:.0%} of cases; Enter: don't know)"
        answer = str(click.prompt(shown, default="", show_default=False, err=True)).strip()
        if not answer:
            return None
        try:
            filled = situation_from({**_plain(situation), field: _value(field, answer)})
            world.check(filled)
        except TutelageError as error:
            click.echo(str(error), err=True)
        else:
            return filled


def _value(field: str, answer: str) -> Any:
    from tutelage.config import parse_yaml

    if is_yes_or_no(field):
        return {"yes": True, "y": True, "no": False, "n": False}.get(answer.lower(), answer)
    if field == "traffic":
        return msgspec.to_builtins(Traffic(requests_per_month=int(answer.replace(",", "").replace("_", ""))))
    if field == "hardware":
        count, _, gpu = answer.rpartition(" x ")
        return {"gpu": gpu.strip(), "count": int(count or 1)}
    return answer if choices(field) or field == "model" else parse_yaml(answer)


def _example(field: str) -> str:
    if field == "traffic":
        return "calls a month"
    if field == "hardware":
        return "such as 1 x rtx-4090"
    return f"such as {TRIED[field][1]}"


def _plain(situation: Situation) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(situation).items() if value is not None}
