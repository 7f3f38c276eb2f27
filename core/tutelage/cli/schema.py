"""`tutelage schema`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it to a file.")
def schema(out: Path | None) -> None:
    """Print the JSON Schema of a recipe, with the settings of every installed plugin.

    An editor completes and checks a recipe that begins with the line
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    import json

    from tutelage.plugins import host
    from tutelage.runs.files import write_atomically
    from tutelage.schema import recipe_schema

    text = json.dumps(recipe_schema(host()), indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
    else:
        write_atomically(out, text + "\n")
        click.echo(f"wrote {out}", err=True)
