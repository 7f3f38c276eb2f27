"""`tutelage advise`: a situation in, advice out; or the same by questions, or one rule told in full."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import json_option, print_json
from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from tutelage_advisor.advice import Advice


@click.command()
@click.argument("situation", required=False, type=click.Path(path_type=Path))
@click.option("--interactive", is_flag=True, help="Ask, and only what still matters.")
@click.option("--why", "rule", metavar="RULE", help="Explain a rule by its name.")
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), help="Write the recipe to this .yaml or .json file."
)
@click.option(
    "--draws", type=click.IntRange(0, 1_000_000), default=10_000, show_default=True, help="Of the Monte Carlo."
)
@json_option
def advise(
    situation: Path | None, interactive: bool, rule: str | None, recipe_file: Path | None, draws: int, as_json: bool
) -> None:
    """Say whether to prompt, retrieve, collect data or fine-tune; how, and at what cost.

    SITUATION is a YAML, TOML or JSON file. Only `task` must be in it; what is left out is assumed, and the advice
    says how much each assumption matters.
    """
    if rule is not None:
        _explain(rule, as_json)
        return
    data = _read(situation, interactive)
    if interactive:
        from tutelage_advisor.cli.ask import ask

        try:
            data = ask(data)
        except click.Abort:
            if sys.stdin.isatty():
                raise
            wrong = "the input ended before the questions did"
            raise TutelageError.at("--interactive", wrong, "run it in a terminal, or write a SITUATION file") from None
    from tutelage_advisor.advising import advise as answer

    advice = answer(data, draws=draws)
    if recipe_file is not None:
        _write_recipe(advice, recipe_file)
    if as_json:
        print_json(advice)
        return
    from tutelage_advisor.cli.page import page

    click.echo(page(advice), nl=False)


def _explain(name: str, as_json: bool) -> None:
    from tutelage_advisor import rules

    rule = rules.find(name)
    if as_json:
        print_json(rule)
        return
    from tutelage_advisor.cli.page import why

    click.echo(why(rule), nl=False)


def _read(path: Path | None, interactive: bool) -> dict[str, Any]:
    from tutelage.config import read_file

    if path is None:
        if interactive:
            return {}
        raise TutelageError.at("tutelage advise", "no situation was given", "name a file, or use --interactive")
    data = read_file(path)
    if not isinstance(data, dict):
        raise TutelageError.at(str(path), "is not a mapping", "give at least `task: what the model shall do`")
    if isinstance(data.get("data"), str) and not re.match(r"^[a-z]+:", data["data"]):
        data["data"] = str((path.parent / data["data"]).resolve())
    return data


def _write_recipe(advice: Advice, path: Path) -> None:
    recipe = advice.preferences.recipe if advice.preferences and advice.preferences.recipe else advice.recipe
    if recipe is None:
        raise TutelageError.at("--recipe", f"the advice is {advice.approach}, so there is nothing to train yet")
    if path.exists():
        raise TutelageError.at(str(path), "exists already", "name another file")
    import msgspec

    encoder = {".json": msgspec.json.encode, ".yaml": msgspec.yaml.encode, ".yml": msgspec.yaml.encode}.get(path.suffix)
    if encoder is None:
        raise TutelageError.at(str(path), "unknown kind of file", "end its name in .yaml or .json")
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(encoder(recipe))
        beside.replace(path)
    except OSError as error:
        raise TutelageError.at(str(path), f"can't be written: {error.strerror}") from None
    click.echo(f"wrote {path}", err=True)
