"""`tutelage merge`."""

from __future__ import annotations

from pathlib import Path

import click

from tutelage.cli.output import json_option, print_json


@click.command()
@click.argument("adapter")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Where the model goes.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Of the weights; auto keeps the base model's.",
)
@click.option(
    "--quantize", is_flag=True, help="Write 4-bit weights (NF4): smaller, and no longer exactly what was tuned."
)
@json_option
def merge(adapter: str, out: Path, dtype: str, quantize: bool, as_json: bool) -> None:
    """Make a plain Hugging Face model of ADAPTER (an adapter's folder, or a run) and its base.

    The model is read back from disk and compared with base + adapter before this succeeds.
    """
    from tutelage.cli.models import reference_of
    from tutelage.errors import TutelageError
    from tutelage.models.locating import fetch, locate
    from tutelage.plugins import host

    located = fetch(locate(reference_of(adapter), Path.cwd(), "adapter", host()))
    if located.kind != "adapter":
        raise TutelageError.at(adapter, "is a whole model, not an adapter", "it can be used as it is")
    import torch

    from tutelage.models.merging import merge as merge_folders

    chosen = "auto" if dtype == "auto" else getattr(torch, dtype)
    folder = merge_folders(Path(located.path), out.absolute(), dtype=chosen, quantize=quantize)
    if as_json:
        print_json({"model": folder, "verified": True})
    else:
        click.echo(f"{folder} (read back from disk, the same logits as base + adapter)")
