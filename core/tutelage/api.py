"""The same three things in Python as on the command line: check a recipe, train it, go on with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage.libraries import import_for_training, import_libraries
from tutelage.plugins import host
from tutelage.recipe import Recipe, Resolved, load, resolve
from tutelage.runs.changing import change
from tutelage.runs.folder import Listener, RunFolder, StageRecord
from tutelage.runs.listing import new_folder

RecipeLike = str | Path | dict[str, Any] | Recipe


class CheckReport(msgspec.Struct, kw_only=True):
    """What a check found: problems (none when the recipe can be trained), notes, and what the data holds, by stage."""

    ok: bool
    problems: list[Problem]
    notes: list[str]
    data: dict[str, Any]


class RunResult(msgspec.Struct, kw_only=True):
    """A finished run: its folder, and its stages with their artifacts and metrics."""

    folder: Path
    state: str
    stages: list[StageRecord]

    @property
    def artifact(self) -> Path:
        """The folder of what the last stage made."""
        return self.folder / self.stages[-1].artifact


def check(
    recipe: RecipeLike, overrides: list[str] | None = None, out: str | Path | None = None, here: bool = True
) -> CheckReport:
    """Find every problem of a recipe that can be known before it runs. Nothing but caches is written.

    Args:
        recipe: a YAML, TOML or JSON file, a mapping, or a Recipe.
        overrides: as `--set` has them, such as `stages.tune.adapter.rank=8`.
        out: the run folder that `train` will be given, if any.
        here: whether it is this machine that will train; if not, its devices and their memory are not looked at.
    """
    try:
        return _preflight(_resolved(recipe, overrides), out, here)
    except TutelageError as error:
        return CheckReport(ok=False, problems=error.problems, notes=[], data={})


def train(
    recipe: RecipeLike,
    overrides: list[str] | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> RunResult:
    """Check a recipe, then run it in a new run folder.

    Args:
        recipe: a YAML, TOML or JSON file, a mapping, or a Recipe.
        overrides: as `--set` has them.
        out: the run's folder; by default a new one below `$TUTELAGE_RUNS` or `./runs`.
        listener: called with every event.
    Raises:
        TutelageError: with every problem found before the run, or what ended it (RunFailed, RunStopped).
    """
    resolved = _resolved(recipe, overrides)
    report = _preflight(resolved, out)
    if not report.ok:
        raise TutelageError(report.problems)
    run = RunFolder.create(
        Path(out) if out is not None else new_folder(resolved.recipe.name),
        resolved.recipe.name,
        resolved.spelled_out(),
        resolved.base,
    )
    return _run(run, resolved, listener, allow_changes=False)


def resume(
    folder: str | Path,
    allow_changes: bool = False,
    listener: Listener | None = None,
    overrides: list[str] | None = None,
) -> RunResult:
    """Go on with a run from its last checkpoint, to the losses it would have had without the break.

    Args:
        allow_changes: go on although data or versions changed since the run began.
        overrides: change the recipe, as `--set` does. Finished stages before the first changed one are not run again;
            it and those after it begin anew.
    Raises:
        TutelageError: when there is no such run, another process writes it, or something changed; and as `train`.
    """
    run = RunFolder.open(Path(folder))
    base = Path(run.record.base)
    resolved = resolve(load(run.recipe, overrides)[0], base, host())
    if overrides and not (report := _preflight(resolved, None)).ok:  # before anything is put aside
        raise TutelageError(report.problems)
    return _run(run, resolved, listener, allow_changes=allow_changes)


def _resolved(recipe: RecipeLike, overrides: list[str] | None) -> Resolved:
    """A valid recipe; TutelageError tells of all that is wrong with it, and with the models and data that it names."""
    data, base = load(recipe, overrides)
    try:
        return resolve(data, base, host())
    except TutelageError as error:
        from tutelage.engine.preflight import preflight_of_parts

        raise TutelageError([*error.problems, *preflight_of_parts(data, base, host())]) from None


def _preflight(resolved: Resolved, out: str | Path | None, here: bool = True) -> CheckReport:
    import_libraries("torch")
    from tutelage.engine.preflight import preflight

    problems, notes, data = preflight(resolved, host(), None if out is None else Path(out), here)
    return CheckReport(ok=not problems, problems=problems, notes=notes, data=data)


def _run(run: RunFolder, resolved: Resolved, listener: Listener | None, *, allow_changes: bool) -> RunResult:
    if listener is not None:
        run.listen(listener)
    with run.lock():
        run.reload()
        if anew := change(run, resolved):
            run.event("notice", text=f"the recipe was changed: {', '.join(anew)} will run anew")
        if all(stage.state == "succeeded" for stage in run.record.stages):
            run.event("notice", text="every stage had succeeded before: there is nothing left to do")
            return RunResult(folder=run.path, state=run.record.state, stages=run.record.stages)
        import_for_training(resolved)
        from tutelage.engine.running import run_recipe

        run_recipe(run, resolved, host(), allow_changes=allow_changes)
    return RunResult(folder=run.path, state=run.record.state, stages=run.record.stages)
