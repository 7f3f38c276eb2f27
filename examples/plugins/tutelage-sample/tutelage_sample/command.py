"""A command: `tutelage quiz FILE`."""

from __future__ import annotations

import json
from pathlib import Path

import click

import tutelage


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def quiz(file: Path) -> None:
    """Print the questions of a quiz FILE, as the model is asked them."""
    from tutelage_sample.quiz import Quiz

    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            click.echo(Quiz().convert(json.loads(line)).prompt)
        except ValueError as error:
            raise tutelage.TutelageError.at(f"{file} line {number}", str(error), "mend the line") from None
