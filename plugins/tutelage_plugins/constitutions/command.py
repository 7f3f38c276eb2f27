"""`tutelage constitution`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutelage.cli.output import json_option, print_json

if TYPE_CHECKING:
    from tutelage.constitution import Constitution, Principle

_file = click.argument("file", required=False, type=click.Path(path_type=Path))


@click.group()
def constitution() -> None:
    """Show and check the principles by which a model judges its own answers."""


@constitution.command()
@_file
@json_option
def show(file: Path | None, as_json: bool) -> None:
    """Print the principles of FILE, or of the constitution that ships."""
    found = _loaded(file)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.name}: {len(found.principles)} principles")
    total = sum(principle.weight for principle in found.principles)
    for principle in found.principles:
        click.echo()
        _print(principle, principle.weight / total, found)


@constitution.command()
@_file
@json_option
def check(file: Path | None, as_json: bool) -> None:
    """Say what makes FILE unusable (exit code 2), and what in it people should look at.

    Principles that are nearly the same or that contradict each other are found by their words: no proof, and not all.
    """
    from tutelage.constitution import doubts

    found = _loaded(file)
    doubted = doubts(found)
    if as_json:
        print_json({"name": found.name, "principles": len(found.principles), "doubts": doubted})
        return
    for doubt in doubted:
        click.echo(f"{click.style('look:', fg='yellow', bold=True)} {doubt.problem}", err=True)
    rest = f"{len(doubted)} to look at" if doubted else "nothing to mend"
    click.echo(f"{found.name}: {len(found.principles)} principles, {rest}")


def _loaded(file: Path | None) -> Constitution:
    from tutelage.constitution import load
    from tutelage_plugins.constitutions import DEFAULT

    return load(file or DEFAULT)


def _print(principle: Principle, share: float, constitution: Constitution) -> None:
    click.echo(f"{click.style(principle.id, bold=True)} ({share:.0%}): {principle.text}")
    for name in ("critique", "revision", "preference"):
        asked = getattr(principle, name)
        if asked:
            click.echo(f"  {name:<11}{asked}")
    if principle.source:
        click.echo(f"  {'source':<11}{constitution.sources[principle.source]}")
