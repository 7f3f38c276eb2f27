"""Runs a recipe stage by stage, in this process or in one process per device, and keeps the run's record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from tutelage.engine.context import StageContext, make_ready
from tutelage.engine.heartbeat import Watch
from tutelage.engine.launching import run_in_processes
from tutelage.engine.quiet import quiet_libraries
from tutelage.errors import Problem, RunFailed, RunStopped, RunWaiting, TutelageError
from tutelage.plugins import Host
from tutelage.recipe import Resolved
from tutelage.report import write_report
from tutelage.runs.folder import RunFolder, State, now, versions


def run_recipe(run: RunFolder, resolved: Resolved, host: Host, *, allow_changes: bool = False) -> None:
    """Run every stage that has not succeeded yet. The caller holds the run's lock.

    Raises:
        TutelageError: what failed or stopped the run; the record says so too.
    """
    quiet_libraries()
    _refuse_changed_versions(run, allow_changes)
    began = any(_began(run, stage.name) for stage in run.record.stages)
    run.listen(_Recorder(run))
    run.update(state="running", reason="", versions=versions())
    names = [stage.name for stage in resolved.recipe.stages]
    run.event("run_started", run=str(run.path), name=run.record.name, stages=names)
    with _recorded(run, refused="stopped" if began else "failed"):
        for stage in resolved.recipe.stages:
            if run.stage(stage.name).state != "succeeded":
                context = make_ready(run, resolved, stage, host)
                _refuse_changed_data(context, allow_changes)
                _run_stage(context)


def _run_stage(context: StageContext) -> None:
    run, name = context.run, context.stage.name
    run.update_stage(name, state="running", started=run.stage(name).started or now())
    if context.data is not None:
        context.emit("data", report=msgspec.to_builtins(context.data.report))
    with Watch(context.folder / "ranks", context.emit):
        artifact = run_in_processes(context) if context.devices.world > 1 else context.phase.run(context)
    run.update_stage(
        name,
        state="succeeded",
        artifact=str(artifact.folder.relative_to(run.path)),
        kind=artifact.kind,
        metrics=artifact.metrics,
        ended=now(),
    )
    context.emit(
        "stage_finished", state="succeeded", artifact=str(artifact.folder), kind=artifact.kind, metrics=artifact.metrics
    )


@contextlib.contextmanager
def _recorded(run: RunFolder, *, refused: State) -> Iterator[None]:
    """Whatever ends the run, its record, its events and its report say so.

    Args:
        refused: the state of a run that was refused for something to mend; one that had begun can still go on.
    """
    state: State = "failed"
    reason = "ended without a word"
    try:
        yield
        state, reason = "succeeded", ""
    except RunStopped as error:
        state, reason = "stopped", str(error)
        raise
    except RunWaiting as error:
        state, reason = "waiting", str(error)
        raise
    except TutelageError as error:
        state = "failed" if isinstance(error, RunFailed) else refused
        reason = str(error)
        for problem in error.problems:
            run.event("error", **msgspec.to_builtins(problem))
        raise
    except KeyboardInterrupt:
        state, reason = "stopped", "interrupted before it could save"
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        run.event("error", **msgspec.to_builtins(Problem(place=str(run.path), wrong=reason)))
        raise
    finally:
        for stage in run.record.stages:
            if stage.state == "running":
                run.update_stage(stage.name, state=state, ended=now())
        run.update(state=state, reason=reason)
        run.event("run_finished", **run.outcome())
        _report(run)


def _report(run: RunFolder) -> None:
    """Write the report; that it can't be written changes nothing in how the run ended."""
    try:
        write_report(run)
    except Exception as error:
        run.event("notice", text=f"the report can't be written: {type(error).__name__}: {error}")


class _Recorder:
    """Keeps the record's step counts from events, whichever process tells them."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "stage_started":
            self.run.update_stage(event["stage"], steps_planned=event["steps"])
        elif event["event"] == "checkpoint":
            self.run.update_stage(event["stage"], steps_done=event["step"])


def _refuse_changed_versions(run: RunFolder, allow: bool) -> None:
    began = any(_began(run, stage.name) for stage in run.record.stages)
    before, here = run.record.versions, versions()
    changed = [
        f"{name} was {before[name]} and is {here.get(name, 'missing')}"
        for name in before
        if before[name] != here.get(name)
    ]
    if changed and began:
        if not allow:
            fix = "install the former versions, or go on all the same with --allow-changes"
            raise TutelageError.at(str(run.path), f"versions changed since this run began: {', '.join(changed)}", fix)
        run.event("notice", text=f"going on with other versions: {', '.join(changed)}")


def _began(run: RunFolder, stage: str) -> bool:
    """Whether a stage has something to go on from."""
    return run.stage(stage).state == "succeeded" or any((run.stage_folder(stage) / "checkpoints").glob("step-*"))


def _refuse_changed_data(context: StageContext, allow: bool) -> None:
    here = context.fingerprints()
    run, name = context.run, context.stage.name
    before = run.record.data.get(name)
    changed = [source for source in {*(before or {}), *here} if before and before.get(source) != here.get(source)]
    if changed and _began(run, name):
        if not allow:
            fix = "put the former data back, or go on with the new with --allow-changes"
            raise TutelageError.at(
                f"stages.{name}.data", f"changed since this run began: {', '.join(sorted(changed))}", fix
            )
        context.emit("notice", text=f"going on with changed data: {', '.join(sorted(changed))}")
    run.update(data={**run.record.data, name: here})
