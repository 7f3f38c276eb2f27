"""Work that reads data, in a process of its own for each: audits, advice on data, estimates of recipes, reviews.

The process runs in a folder that holds copies of what it may read, and names it by names in that folder, so that no
path of the server is in its answer. It is ended when it takes too long.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage_server.problems import refused
from tutelage_server.settings import PREFIX

T = TypeVar("T")

SECONDS = 120.0
"How long one may take."
AT_ONCE = 2
"How many run at a time; others wait for a moment, then are told to come back."
MEMORY = 8 * 2**30
_WAIT_SECONDS = 10.0
_turns = threading.BoundedSemaphore(AT_ONCE)


class Task(msgspec.Struct, tag_field="do", frozen=True, kw_only=True):
    """Base of what can be asked of the process."""


class AuditTask(Task, tag="audit", frozen=True, kw_only=True):
    """Audit a file."""

    data: str
    held_out: str = ""
    against: str = ""
    settings: dict[str, dict[str, Any]] = {}
    skip: tuple[str, ...] = ()
    limit: int


class AdviceTask(Task, tag="advise", frozen=True, kw_only=True):
    """Advise in a situation whose `data` is a file."""

    situation: dict[str, Any]
    draws: int
    seed: int
    shown: str
    "What the data is called where the question came from."


class EstimateTask(Task, tag="estimate", frozen=True, kw_only=True):
    """Estimate a recipe."""

    recipe: str
    hardware: dict[str, Any]


class ReviewTask(Task, tag="review", frozen=True, kw_only=True):
    """Begin a review of a file or go on with it, and say where it stands."""

    data: str
    who: str = ""
    "Empty: only say."
    sample: int = 50
    seed: int = 0
    decisions: list[Any] = []
    sign: bool = False


AnyTask = AuditTask | AdviceTask | EstimateTask | ReviewTask


class _Answer(msgspec.Struct, kw_only=True):
    result: msgspec.Raw = msgspec.Raw()
    problems: list[Problem] = []


def work(task: AnyTask, folder: Path, kind: type[T], seconds: float | None = None) -> T:
    """What the process answers, as `kind`.

    Raises:
        TutelageError: what the work itself refuses.
        Refused: 422 when it takes too long or too much memory, 503 when too many wait.
    """
    seconds = SECONDS if seconds is None else seconds
    if not _turns.acquire(timeout=_WAIT_SECONDS):
        wrong = "does as many of these at once as it can"
        raise refused(503, "the server", wrong, "try again in a moment", code="busy", headers={"retry-after": "10"})
    try:
        answer = _run(task, folder, seconds)
    finally:
        _turns.release()
    if answer.problems:
        raise TutelageError(answer.problems)
    return msgspec.json.decode(answer.result, type=kind)


def _run(task: AnyTask, folder: Path, seconds: float) -> _Answer:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "tutelage_server.advice.working"]
    place = type(task).__name__.removesuffix("Task").lower()
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(task),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            timeout=seconds,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        fix = "look at fewer rows (limit), or send less data"
        raise refused(422, place, f"took longer than the {seconds:g} s that it may", fix, code="too_slow") from None
    try:
        return msgspec.json.decode(done.stdout, type=_Answer)
    except msgspec.MsgspecError:
        wrong = "needs more memory than it may have, or could not be done"
        raise refused(422, place, wrong, "look at fewer rows (limit), or send less data", code="too_large") from None


def answer(task: AnyTask) -> Any:
    """Do a task; runs in the process, in the folder of the data."""
    match task:
        case AuditTask():
            return _audit(task)
        case AdviceTask():
            return _advise(task)
        case EstimateTask():
            from tutelage_advisor.catalog import load
            from tutelage_advisor.estimates.recipes import estimate_recipe

            return estimate_recipe(Path(task.recipe), task.hardware, load(), [])
        case ReviewTask():
            return _review(task)


def _audit(task: AuditTask) -> Any:
    from tutelage_advisor.audit import Options, audit

    options = Options(
        held_out=Path(task.held_out) if task.held_out else None,
        against=Path(task.against) if task.against else None,
        settings=task.settings,
        skip=task.skip,
        limit=task.limit,
    )
    return audit(task.data, options)


def _advise(task: AdviceTask) -> Any:
    from tutelage_advisor.advising import advise

    name = task.situation["data"]
    return _renamed(msgspec.to_builtins(advise(task.situation, draws=task.draws, seed=task.seed)), name, task.shown)


def _renamed(value: Any, name: str, shown: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(each, name, shown) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, name, shown) for each in value]
    return value.replace(name, shown) if isinstance(value, str) else value


def _review(task: ReviewTask) -> Any:
    from tutelage_advisor import review
    from tutelage_advisor.audit import audit

    if task.who:
        state = review.begin(task.data, task.who, audit(task.data), task.sample, task.seed)
        if task.decisions:
            state = review.decide(task.data, task.who, task.decisions)
        if task.sign:
            review.sign(task.data, task.who)
    found = review.verify(task.data)
    nothing = review.State(pending=[], decided={}, entries=[])  # there is no record, or it was tampered with
    state = review.state(task.data) if found.entries else nothing
    pending = [
        {
            "row": each.item.row,
            "place": each.item.place,
            "why": each.item.stratum,
            "turns": each.turns,
            "error": each.error,
        }
        for each in review.shown(task.data, state.pending)
    ]
    problems = [problem.replace(task.data, "the file") for problem in found.problems]
    signatures = [{"who": each.who, "at": each.at} for each in found.signatures]
    return {
        "signed": found.ok,
        "problems": problems,
        "pending": pending,
        "decided": len(state.decided),
        "signatures": signatures,
        "head": found.head,
    }


def main() -> None:
    """Answer the one task that comes in."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=AnyTask)
    try:
        said = msgspec.json.encode({"result": answer(task)}, enc_hook=str)
    except TutelageError as error:
        said = msgspec.json.encode({"problems": error.problems})
    for each in {str(Path.cwd()), os.environ.get("PWD", "")} - {"", "/"}:  # nobody's business
        quoted = msgspec.json.encode(each)[1:-1]
        said = said.replace(quoted + b"/", b"").replace(quoted, b".")
    answers.write(said)
    answers.flush()


if __name__ == "__main__":
    main()
