"""What `generate`, `chat` and `merge` share: loading what a reference means, and the options of sampling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def sampling_options(command: F) -> F:
    """Add `--system`, `--max-new-tokens`, `--temperature`, `--top-p` and `--seed`."""
    options = [
        click.option("--system", default="", help="A system message that comes first."),
        click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0),
            default=0.0,
            show_default=True,
            help="0 takes the likeliest token each time.",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(min=0, max=1, min_open=True),
            default=1.0,
            show_default=True,
            help="Sample among the likeliest tokens that make up this share.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def reference_of(name: str) -> str:
    """A model's reference as it is, or the folder of a run that is named as `tutelage runs list` shows it."""
    from tutelage.runs.folder import RECORD
    from tutelage.runs.listing import runs_root

    run = runs_root() / name
    return str(run) if not Path(name).exists() and (run / RECORD).is_file() else name


def load(name: str) -> tuple[Any, Any]:
    """The model and the tokenizer that a reference means, ready to generate.

    Raises:
        TutelageError: when there is no such model.
    """
    from tutelage.models.generation import load_for_generation
    from tutelage.plugins import host

    return load_for_generation(reference_of(name), host())


def messages_of(system: str, text: str) -> list[dict[str, str]] | str:
    """A prompt with its system message, or the bare text where there is none."""
    if not system:
        return text
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]
