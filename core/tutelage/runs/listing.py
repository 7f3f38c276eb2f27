"""The runs below one folder: naming, finding, comparing and pruning them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.config import did_you_mean, item_label, join
from tutelage.errors import TutelageError
from tutelage.runs.folder import RECORD, RunFolder
from tutelage.runs.history import read_history

if TYPE_CHECKING:
    from collections.abc import Iterator


class Summary(msgspec.Struct, kw_only=True):
    """A line of `tutelage runs list`."""

    name: str
    state: str
    "queued, running, succeeded, failed, stopped, or interrupted: said to be running, but no process holds it."
    created: str
    stages: list[str]
    steps: str
    loss: float | None
    eval_loss: float | None
    seconds: float
    size: int
    folder: Path


class Difference(msgspec.Struct):
    """One field or figure of several runs, in their order; None where a run has none."""

    field: str
    values: list[Any]


class Comparison(msgspec.Struct):
    """What several runs have different: settings, versions and data; and their metrics side by side."""

    runs: list[str]
    settings: list[Difference]
    metrics: list[Difference]


class Prunable(msgspec.Struct):
    """A folder of checkpoints that a finished run needs no more."""

    run: str
    folder: Path
    size: int


def runs_root() -> Path:
    """Where runs lie: $TUTELAGE_RUNS, else `runs` below the current folder."""
    return Path(os.environ.get("TUTELAGE_RUNS") or "runs").absolute()


def new_folder(name: str, root: Path | None = None) -> Path:
    """The first of NAME, NAME-2, NAME-3 … that does not exist."""
    root = root or runs_root()
    folder = root / name
    count = 1
    while folder.exists():
        count += 1
        folder = root / f"{name}-{count}"
    return folder


def all_runs(root: Path | None = None) -> list[RunFolder]:
    """Every readable run, newest first; damaged ones are left out."""
    root = root or runs_root()
    found = []
    for record in root.glob(f"*/{RECORD}"):
        try:
            found.append(RunFolder.open(record.parent))
        except TutelageError:
            continue
    return sorted(found, key=lambda run: (run.record.created, run.path.name), reverse=True)


def find_run(reference: str, root: Path | None = None) -> RunFolder:
    """A run by its folder, or by its folder's name among the runs here.

    Raises:
        TutelageError: with the nearest name when there is none.
    """
    root = root or runs_root()
    for path in (Path(reference), root / reference):
        if (path / RECORD).is_file():
            return RunFolder.open(path)
    known = [run.path.name for run in all_runs(root)]
    raise TutelageError.at(reference, f"no such run below {root}", did_you_mean(reference, known))


def state_of(run: RunFolder) -> str:
    """A run's state; `interrupted` when it says running but no process holds it."""
    if run.record.state == "running" and not run.locked():
        return "interrupted"
    return run.record.state


def summary_of(run: RunFolder) -> Summary:
    """What a list shows of a run."""
    history = read_history(run)
    stages = run.record.stages
    steps = sum(stage.steps_done for stage in stages)
    planned = sum(stage.steps_planned or 0 for stage in stages)
    losses = [stage.last_loss for stage in history.values() if stage.last_loss is not None]
    evals = [value for stage in history.values() for _, value in stage.points("eval_loss")]
    return Summary(
        name=run.path.name,
        state=state_of(run),
        created=run.record.created,
        stages=[f"{stage.name} ({stage.phase}, {stage.adapter})" for stage in stages],
        steps=f"{steps}/{planned}" if planned else str(steps),
        loss=losses[-1] if losses else None,
        eval_loss=evals[-1] if evals else None,
        seconds=sum(stage.seconds for stage in history.values()),
        size=folder_size(run.path),
        folder=run.path,
    )


def compare(runs: list[RunFolder]) -> Comparison:
    """Settings that differ (recipe, versions, data) and every metric of every run."""
    settings = [dict(_settings(run)) for run in runs]
    metrics = [dict(_metrics(run)) for run in runs]
    rows = _rows(settings)
    return Comparison(
        runs=[run.path.name for run in runs],
        settings=[row for row in rows if any(value != row.values[0] for value in row.values)],
        metrics=_rows(metrics),
    )


def prunable(runs: list[RunFolder], unfinished: bool = False) -> list[Prunable]:
    """Checkpoints of runs that succeeded and, if asked, of those that failed or stopped (which then can't go on).

    Artifacts, records and reports always stay; so does all of a run that a process holds.
    """
    wanted = {"succeeded", "failed", "stopped", "interrupted"} if unfinished else {"succeeded"}
    found = []
    for run in runs:
        if state_of(run) in wanted and not run.locked():
            for folder in sorted(run.path.glob("stages/*/checkpoints")):
                found.append(Prunable(run.path.name, folder, folder_size(folder)))
    return found


def prune(found: list[Prunable]) -> int:
    """Remove what `prunable` found, and return how many bytes that freed.

    Raises:
        TutelageError: when a run is being written after all, or a folder can't be removed.
    """
    freed = 0
    for item in found:
        with RunFolder.open(item.folder.parents[2]).lock():
            try:
                shutil.rmtree(item.folder)
            except OSError as error:
                raise TutelageError.at(str(item.folder), f"can't be removed: {error.strerror}") from None
        freed += item.size
    return freed


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; those that vanish meanwhile count nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(parent) / file).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def flatten(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Plain data as (`stages.tune.trainer.seed`, value) pairs, as `--set` names them."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from flatten(value, join(place, str(key)))
    elif isinstance(data, list) and data and isinstance(data[0], dict):
        for index, item in enumerate(data):
            yield from flatten(item, join(place, item_label(item, index)))
    else:
        yield place, data


def _settings(run: RunFolder) -> Iterator[tuple[str, Any]]:
    record = run.record
    yield from flatten(run.recipe)
    yield from flatten({"versions": {**record.versions, "tutelage": record.tutelage}, "data": record.data})
    yield "platform", record.platform


def _metrics(run: RunFolder) -> Iterator[tuple[str, Any]]:
    yield "state", state_of(run)
    history = read_history(run)
    for stage in run.record.stages:
        for name, value in stage.metrics.items():
            yield f"{stage.name}.{name}", value
        told = history.get(stage.name)
        if told:
            figures = {
                "steps": len(told.steps),
                "loss": told.last_loss,
                "seconds": told.seconds,
                "tokens_per_second": told.tokens_per_second,
                "peak_memory_gib": told.peak_memory,
            }
            for name, value in figures.items():
                if name not in stage.metrics and value is not None:
                    yield f"{stage.name}.{name}", value


def _rows(columns: list[dict[str, Any]]) -> list[Difference]:
    fields = list(dict.fromkeys(field for column in columns for field in column))
    return [Difference(field, [column.get(field) for column in columns]) for field in fields]
