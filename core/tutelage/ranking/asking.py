"""Asking a person: which desk they sit at, the lettered answers they see, and what their answer means."""

from __future__ import annotations

from string import ascii_lowercase

from tutelage.config import did_you_mean
from tutelage.errors import TutelageError
from tutelage.ranking.desk import Desk, desk_folder
from tutelage.ranking.judgements import Judgement
from tutelage.ranking.orders import parse_order
from tutelage.ranking.tasks import Task, shown_order
from tutelage.runs.folder import RunFolder, StageRecord


def desk_of(run: RunFolder, name: str, place: str = "--stage") -> tuple[Desk, StageRecord]:
    """The desk of a run's ranking stage, and what is known of that stage; the last open one where `name` is empty.

    Raises:
        TutelageError: when there is none (yet), or the stage named is no ranking stage.
    """
    names = [stage.name for stage in run.record.stages]
    if name and name not in names:
        raise TutelageError.at(place, f"the run has no stage {name!r}", did_you_mean(name, names))
    coming = [stage.name for stage in run.record.stages if stage.phase == "ranking"]
    if name and coming and name not in coming:
        raise TutelageError.at(place, f"{name} is no ranking stage", f"name {' or '.join(coming)}")
    ready = [
        stage
        for stage in run.record.stages
        if name in ("", stage.name) and stage.state != "queued" and Desk.is_in(desk_folder(run.path, stage.name))
    ]
    open_ones = [stage for stage in ready if stage.state != "succeeded"]
    if not ready:
        wrong = f"the stage {name or coming[0]} has not asked anything yet" if coming else "has no ranking stage"
        raise TutelageError.at(str(run.path), wrong, f"see how far it is: tutelage runs show {run.path.name}")
    chosen = (open_ones or ready)[-1]
    return Desk.open(desk_folder(run.path, chosen.name)), chosen


def lettered(desk: Desk, person: str, task: Task) -> dict[str, str]:
    """The answers to a question by letter, in the order of this person."""
    order = shown_order(desk.plan, person, task)
    return {letter: task.answers[at] for letter, at in zip(ascii_lowercase, order, strict=False)}


def judge_typed(desk: Desk, person: str, task: Task, typed: str, seconds: float | None = None) -> Judgement:
    """Note what a person typed: an order of letters (`b a=c d`), `bad` or `skip`.

    Raises:
        ValueError: with a sentence for anything else.
        TutelageError: as `Desk.judge`.
    """
    if typed == "bad" or typed == "skip":
        return desk.judge(person, task, "bad" if typed == "bad" else "skip", seconds=seconds)
    order = shown_order(desk.plan, person, task)
    ranks = [0.0] * len(order)
    for at, rank in zip(order, parse_order(typed, len(order)), strict=True):
        ranks[at] = float(rank)
    return desk.judge(person, task, "ranking", ranks, seconds)
