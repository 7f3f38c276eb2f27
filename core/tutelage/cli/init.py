"""`tutelage init`."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path

import click

from tutelage.cli.output import json_option, print_json

ADAPTERS = {
    "starter": ("lora", "or {kind: lora, rank: 16, targets: all-linear, …}; also qlora, prompt, full"),
    "qlora": ("qlora", "LoRA beside a 4-bit base: less memory; needs pip install 'tutelage[qlora]'"),
    "prompt": ("prompt", "a soft prompt: a few learnt vectors before the input; also lora, qlora, full"),
    "full": ("full", "every weight learns: the most memory; also lora, qlora, prompt"),
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "--from",
    "template",
    type=click.Choice(list(ADAPTERS)),
    default="starter",
    show_default=True,
    help="What to begin with: LoRA on a small model (starter), or another adapter.",
)
@json_option
def init(folder: Path, template: str, as_json: bool) -> None:
    """Write a commented recipe and example data into FOLDER (by default, here)."""
    from tutelage.errors import Problem, TutelageError
    from tutelage.runs.files import write_atomically

    templates = files("tutelage.cli") / "templates"
    adapter, comment = ADAPTERS[template]
    recipe = (templates / "recipe.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace("adapter: ADAPTER", f"{f'adapter: {adapter}':<35}# {comment}")
    written = {
        folder / "recipe.yaml": recipe,
        folder / "examples.jsonl": (templates / "examples.jsonl").read_text(encoding="utf-8"),
    }
    there = [
        Problem(place=str(file), wrong="exists already", fix="name another folder") for file in written if file.exists()
    ]
    if there:
        raise TutelageError(there)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in written.items():
            write_atomically(file, text)
    except OSError as error:
        raise TutelageError.at(str(folder), f"can't be written: {error.strerror}", "name another folder") from None
    if as_json:
        print_json({"recipe": folder / "recipe.yaml", "data": folder / "examples.jsonl"})
        return
    for file in written:
        click.echo(f"wrote {file}")
    click.echo(f"go on with: tutelage check {shlex.quote(str(folder / 'recipe.yaml'))}")
