"""`tutelage data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tutelage.cli.groups import OpenGroup
from tutelage.cli.output import json_option, print_json
from tutelage.cli.train import set_option


@click.group(cls=OpenGroup)
def data() -> None:
    """Look at data as the model will see it."""


@data.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@set_option
@click.option("--stage", default="", help="The stage whose data to show; by default each.")
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="How many examples.")
@json_option
def show(recipe: Path, overrides: tuple[str, ...], stage: str, rows: int, as_json: bool) -> None:
    """Print examples of RECIPE's data with what is learnt in colour, special tokens and all."""
    from rich.console import Console

    from tutelage.data import showing

    for name, report, examples, tokenizer in _examples(recipe, list(overrides), stage, rows):
        if as_json:
            told = {"stage": name, "report": report, "examples": showing.as_json(examples, tokenizer)}
            print_json(told)
            continue
        click.echo(
            f"{name}: {report.examples:,} examples of {report.read:,} rows, {report.tokens:,} tokens, "
            f"{report.learnt:,} learnt; {report.dropped:,} rows dropped, {report.cut:,} cut"
        )
        showing.print_examples(examples, tokenizer, Console(highlight=False))


def _examples(recipe: Path, overrides: list[str], only: str, count: int) -> list[tuple[str, Any, Any, Any]]:
    """For every stage with data: its name, its data report, its first examples, and the tokenizer.

    Raises:
        TutelageError: when the recipe or its data can't be used, or no stage has data.
    """
    from tutelage.config import did_you_mean
    from tutelage.engine.context import foreseen_model, prepare_data
    from tutelage.errors import TutelageError
    from tutelage.models.loading import load_tokenizer
    from tutelage.plugins import host
    from tutelage.recipe import load, resolve

    plain, base = load(recipe, overrides)
    resolved = resolve(plain, base, host())
    names = [stage.name for stage in resolved.recipe.stages]
    if only and only not in names:
        raise TutelageError.at("--stage", f"the recipe has no stage {only}", did_you_mean(only, names))
    found = []
    for stage in resolved.recipe.stages:
        if only and stage.name != only:
            continue
        located = foreseen_model(resolved, stage, host())
        tokenizer = load_tokenizer(located, resolved.recipe.tokenizer, base)
        prepared = prepare_data(resolved, stage, located, tokenizer, host())
        if prepared is not None:
            chosen = prepared.train
            first = [(chosen.place(index), chosen[index]) for index in range(min(count, len(chosen)))]
            found.append((stage.name, prepared.report, first, tokenizer))
    if not found:
        raise TutelageError.at(str(recipe), "no stage has data to show")
    return found
