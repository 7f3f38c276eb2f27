"""The figures of jobs' runs: series of their steps, and several side by side."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.runs.folder import RunFolder
from tutelage.runs.history import StageHistory, history_of
from tutelage.runs.listing import compare
from tutelage_server.jobs.launching import job_folder
from tutelage_server.jobs.schemas import Compared, Difference, Metrics, StageMetrics
from tutelage_server.problems import refused
from tutelage_server.settings import Settings

_NO_FIGURES = frozenset({"event", "time", "stage", "step"})


def metrics_of(settings: Settings, job_id: str, points: int, stage: str = "") -> Metrics:
    """The figures of a job's stages, at most so many points of each, evenly chosen with the last among them."""
    run = _run(settings, job_id)
    if run is None:
        return Metrics(stages=[])
    history = history_of(run.events())
    stages = [
        StageMetrics(
            name=record.name,
            phase=record.phase,
            state=record.state,
            metrics={name: value for name, value in record.metrics.items() if isinstance(value, int | float)},
            series=_series(history[record.name], points) if record.name in history else {},
        )
        for record in run.record.stages
        if stage in ("", record.name)
    ]
    return Metrics(stages=stages)


def compare_jobs(settings: Settings, jobs: list[str]) -> Compared:
    """Settings that differ, and every figure, of several jobs' runs.

    Raises:
        Refused: 409 when one has not begun to run.
    """
    runs = []
    for job in jobs:
        run = _run(settings, job)
        if run is None:
            raise refused(
                409, job, "has not begun, so there is nothing to compare", "wait until it runs", code="no_run"
            )
        runs.append(run)
    found = compare(runs)

    def shown(rows: list[object]) -> list[Difference]:
        return [Difference(field=row.field, values=row.values) for row in rows]  # type: ignore[attr-defined]

    return Compared(jobs=jobs, settings=shown([*found.settings]), metrics=shown([*found.metrics]))


def _run(settings: Settings, job_id: str) -> RunFolder | None:
    try:
        return RunFolder.open(job_folder(settings, job_id) / "run")
    except TutelageError:
        return None


def _series(stage: StageHistory, points: int) -> dict[str, list[tuple[int, float]]]:
    names = dict.fromkeys(name for rows in (stage.steps, stage.evals) for row in rows.values() for name in row)
    series = {name: stage.points(name) for name in names if name not in _NO_FIGURES}
    return {
        name: [(int(step), value) for step, value in _thin(found, points)] for name, found in series.items() if found
    }


def _thin(found: list[tuple[float, float]], points: int) -> list[tuple[float, float]]:
    every = -(-len(found) // points)
    return found if every <= 1 else found[::-every][::-1]
