"""The program that torchrun (or a cluster's launcher) starts once per device: runs one stage of a run that exists.

Usage: python -m tutelage.engine.worker RUN STAGE MICRO_BATCH_LIMIT
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import msgspec

from tutelage.engine.launching import OUTCOME, Outcome, die_with_parent, obey
from tutelage.errors import Problem, RunStopped, TutelageError
from tutelage.libraries import import_for_training, own_process
from tutelage.plugins import host
from tutelage.recipe import resolve
from tutelage.runs.folder import RunFolder


def main() -> int:
    """Run the stage; how it ended is written for the process that started it."""
    own_process()
    if sys.platform == "linux":
        die_with_parent()
    path, name, limit = sys.argv[1:4]
    run = RunFolder.open(Path(path))
    ranks = run.stage_folder(name) / "ranks"
    try:
        resolved = resolve(run.recipe, Path(run.record.base), host())
        import_for_training(resolved)
        from tutelage.engine.context import make_ready
        from tutelage.engine.devices import NODES
        from tutelage.engine.quiet import quiet_libraries

        quiet_libraries()
        if int(os.environ.get(NODES, "1")) > 1:
            obey(ranks)
        stage = next(stage for stage in resolved.recipe.stages if stage.name == name)
        context = make_ready(run, resolved, stage, host())
        context.micro_batch_limit = int(limit)
        artifact = context.phase.run(context)
        outcome = Outcome(artifact=str(artifact.folder), kind=artifact.kind, metrics=artifact.metrics)
        if os.environ.get("RANK", "0") != "0":
            return 0
    except RunStopped as error:
        outcome = Outcome(problems=error.problems, exit_code=error.exit_code, stopped=True)
    except TutelageError as error:
        outcome = Outcome(problems=error.problems, exit_code=error.exit_code)
    except Exception as error:
        outcome = _of_unexpected(error, name)
    _write_first(ranks / OUTCOME, outcome)
    return outcome.exit_code


def _of_unexpected(error: Exception, stage: str) -> Outcome:
    from tutelage.engine.learner import OutOfMemory

    if isinstance(error, OutOfMemory):
        return Outcome(out_of_memory_at=error.tokens, exit_code=1)
    traceback.print_exc()
    return Outcome(problems=[Problem(place=stage, wrong=f"{type(error).__name__}: {error}")], exit_code=1)


def _write_first(path: Path, outcome: Outcome) -> None:
    """The first process to end decides: others fail only because it did."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(msgspec.json.encode(outcome))
    try:
        os.link(beside, path)
    except FileExistsError:
        pass
    finally:
        beside.unlink()


if __name__ == "__main__":
    sys.exit(main())
