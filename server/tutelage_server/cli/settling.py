"""Adapters name the folder of their base model, as it was where they were trained: here it lies elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tutelage_server.cli.calling import say


def settle(run: Path, final: Path, recipe: dict[str, Any]) -> None:
    """Let the adapters of a fetched run name their base models as they are found on this machine.

    A base that an earlier stage made is in the run itself; one of the starter models is brought, if need be.

    Args:
        run: where the run lies now.
        final: where it will lie.
        recipe: the job's, as it was submitted.
    """
    for file in sorted(run.glob("stages/*/*/adapter_config.json")):
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            named = str(settings["base_model_name_or_path"])
        except (ValueError, KeyError, TypeError):
            continue  # no adapter of PEFT's, whose reader says what is wrong with it
        found = _inside(named, run, final) or _here(named, _model_of(recipe, file.parts[-3]))
        if found is None:
            say(f"note: the base model of {file.relative_to(run)} is not here; name its folder in that file")
        elif found != named:
            from tutelage.runs.files import write_atomically

            settings["base_model_name_or_path"] = found
            write_atomically(file, json.dumps(settings, indent=2) + "\n")


def _inside(named: str, run: Path, final: Path) -> str | None:
    """The base as a folder of the run, when an earlier stage made it."""
    _, _, tail = named.rpartition("/run/")
    inside = tail.startswith("stages/") and ".." not in Path(tail).parts and (run / tail).is_dir()
    return str(final / tail) if inside else None


def _here(named: str, model: str) -> str | None:
    """The base as it is on this machine: a hub name stays one, what a recipe calls a source's model is brought."""
    from tutelage.errors import TutelageError
    from tutelage.models.locating import fetch, locate
    from tutelage.plugins import host

    if not named.startswith("/") or Path(named).is_dir():
        return named
    if not model.startswith("starter:"):
        return None
    try:
        return fetch(locate(model, Path.cwd(), "model", host())).path
    except TutelageError as error:
        say(f"note: {error}")
        return None


def _model_of(recipe: dict[str, Any], stage: str) -> str:
    stages = (each for each in recipe.get("stages", []) if isinstance(each, dict) and each.get("name") == stage)
    named = str(next(stages, {}).get("model") or "")
    return named if named and not named.startswith("stage:") else str(recipe.get("model") or "")
