"""Questions and rankings as other tools have them: plain JSONL, Argilla's records, Label Studio's tasks.

A file that ends in `.json` is a JSON list, any other one JSON Lines. Answers are known again by their text, whatever
they are called there, so a tool may show them in any order.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage.ranking.desk import Desk
from tutelage.ranking.judgements import Judgement
from tutelage.ranking.orders import tidied
from tutelage.ranking.shapes import SHAPES, Given
from tutelage.ranking.tasks import Task
from tutelage.runs.files import write_atomically
from tutelage.runs.folder import now


class Imported(msgspec.Struct, kw_only=True):
    """What became of a file's rows."""

    judgements: int = 0
    "New ones."
    known: int = 0
    "Those that stood here before, just so."
    open: int = 0
    "Rows that nobody had judged."


def export(desk: Desk, path: Path, kind: str, person: str = "") -> int:
    """Write a person's questions, in their order; or, without a person, all questions that lack judgements.

    Plain JSONL has all judgements that were given, too.

    Returns:
        how many rows were written.
    Raises:
        TutelageError: when the file can't be written.
    """
    rows = list(SHAPES[kind][0](desk, person))
    if path.suffix.lower() == ".json":
        content = json.dumps(rows, ensure_ascii=False, indent=1)
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise TutelageError.at(str(path), f"can't be written: {error.strerror}", "name another file") from None
    return len(rows)


def read_judgements(desk: Desk, path: Path, kind: str, person: str = "") -> Imported:
    """Note all judgements of a file, or none.

    Args:
        person: whose they are, whatever the file says.
    Raises:
        TutelageError: with every row that can't be used, by its line.
    """
    from tutelage.data.problems import RowProblems
    from tutelage.data.reading import files_of, rows

    wrong = RowProblems()
    found = Imported()
    judgements: list[tuple[str, Judgement]] = []
    first: dict[tuple[str, str], tuple[str, Judgement]] = {}
    for place, row in rows(files_of(str(path), Path.cwd(), "--import"), wrong):
        try:
            given = list(SHAPES[kind][1](row))
            found.open += not given
            for each in given:
                judgement = _judgement(desk, each, person)
                _refuse_repeated(first, place, judgement)
                judgements.append((place, judgement))
        except ValueError as error:
            said, _, fix = str(error).partition("; ")
            wrong.add(place, said, fix)
    problems = wrong.listed(str(path)) if wrong.count else []
    if problems:
        raise TutelageError([*problems, Problem(place=str(path), wrong="nothing of it was taken")])
    found.judgements = desk.add(judgements)
    found.known = len(judgements) - found.judgements
    return found


def _judgement(desk: Desk, given: Given, person: str) -> Judgement:
    """Raises ValueError with a sentence when it does not answer one of the desk's questions."""
    name = person or given.person
    if not name:
        raise ValueError("says not who judged; name them with --person")
    task = desk.tasks.get(given.task)
    if task is None:
        raise ValueError(f"{given.task!r} is no question of this stage; was it exported from this run?")
    if desk.plan.people and name not in desk.plan.people:
        raise ValueError(f"{name!r} is not asked to rank here; those who are: {', '.join(desk.plan.people)}")
    ranks: list[float] = []
    shown: list[int] = []
    if given.kind == "ranking":
        ranks, shown = _placed(task, given.order)
    return Judgement(
        kind=given.kind,
        person=name,
        at=given.at or now(),
        task=task.id,
        ranks=ranks,
        shown=shown,
        seconds=given.seconds,
        comment=given.comment,
        by="import",
    )


def _placed(task: Task, order: list[tuple[str, float]]) -> tuple[list[float], list[int]]:
    places = {answer: place for place, answer in enumerate(task.answers)}
    ranks: dict[int, float] = {}
    for text, rank in order:
        if text not in places:
            raise ValueError(f"the answer {_short(text)} is none of the question's")
        if places[text] in ranks:
            raise ValueError(f"the answer {_short(text)} is there twice")
        ranks[places[text]] = rank
    missing = [answer for answer in task.answers if places[answer] not in ranks]
    if missing:
        raise ValueError(f"the answer {_short(missing[0])} is missing; every answer needs a rank")
    return [float(rank) for rank in tidied([ranks[at] for at in range(len(ranks))])], list(ranks)


def _refuse_repeated(first: dict[tuple[str, str], tuple[str, Judgement]], place: str, judgement: Judgement) -> None:
    key = (judgement.person, judgement.task)
    if key in first:
        where, before = first[key]
        if before.same_as(judgement):
            raise ValueError(f"says again what {where} says; leave one of them out")
        raise ValueError(f"contradicts {where}: {judgement.person} can answer a question once; leave one of them out")
    first[key] = (place, judgement)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
