"""A run whose recipe is changed: stages before the change stay as they are, the changed one and those after begin anew.

What they had made is put aside in the run's folder, not removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.errors import TutelageError
from tutelage.runs.files import write_atomically
from tutelage.runs.folder import RECIPE, RunFolder, StageRecord, kind_of, recipe_text

if TYPE_CHECKING:
    from tutelage.recipe import Resolved


def change(run: RunFolder, resolved: Resolved) -> list[str]:
    """Make `resolved` the recipe of a run, which the caller holds the lock of.

    Returns:
        the stages that begin anew; none where nothing was changed.
    Raises:
        TutelageError: when a stage was added, removed or renamed before one that has begun.
    """
    before, after = run.recipe, msgspec.json.decode(msgspec.json.encode(resolved.spelled_out()))
    names = [stage["name"] for stage in after["stages"]]
    known = [stage.name for stage in run.record.stages]
    if [name for name in names if name in known] != known:
        wrong = f"the run has the stages {', '.join(known)}, and the recipe {', '.join(names)}"
        raise TutelageError.at(str(run.path), wrong, "start a new run where stages are removed or moved")
    first = _first_change(before, after)
    if first is None:
        return []
    anew = names[first:]
    stages = [stage for stage in run.record.stages if stage.name not in anew]
    stages += [
        StageRecord(name=stage["name"], phase=kind_of(stage["phase"]), adapter=kind_of(stage.get("adapter")))
        for stage in after["stages"][first:]
    ]
    data = {name: prints for name, prints in run.record.data.items() if name not in anew}
    seeds = {stage["name"]: stage["trainer"]["seed"] for stage in after["stages"]}
    # In this order, a kill leaves a run whose former recipe can be gone on with, or changed again.
    run.update(stages=stages, data=data, seeds=seeds, state="stopped", reason="")
    for name in anew:
        _put_aside(run.path / "stages" / name)
    write_atomically(run.path / RECIPE, recipe_text(after))
    return anew


def _first_change(before: dict[str, Any], after: dict[str, Any]) -> int | None:
    """The number of the first stage that must begin anew, or None."""
    common = ("model", "tokenizer", "governance")
    if any(before.get(field) != after.get(field) for field in common):
        return 0
    for number, stage in enumerate(after["stages"]):
        if number >= len(before["stages"]) or before["stages"][number] != stage:
            return number
    return None


def _put_aside(folder: Path) -> None:
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f".{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(aside)
