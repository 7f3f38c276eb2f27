"""People rank the answers that a job waits for: one question at a time, not knowing who wrote what."""

from __future__ import annotations

from tutelage.errors import Problem, TutelageError
from tutelage.ranking.asking import desk_of, judge_typed, lettered
from tutelage.ranking.desk import Desk
from tutelage.ranking.shapes import text_of
from tutelage.ranking.tasks import Task
from tutelage.runs.folder import RunFolder
from tutelage_server.jobs.launching import job_folder
from tutelage_server.jobs.schemas import Judgement, Question, RankingDesk
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.tables import Job


def next_question(settings: Settings, job: Job, person: str, stage: str) -> RankingDesk:
    """What a person is to rank next; they are let in if they may rank.

    Raises:
        TutelageError: when the job has nothing to rank, or the person may not.
    """
    desk, name = _open(settings, job, stage)
    with _Places(job.id):
        desk.join(person)
        return _shown(desk, name, person)


def judge(settings: Settings, job: Job, said: Judgement) -> RankingDesk:
    """Note what a person says, durably, and show what is next.

    Raises:
        Refused: 409 when the person answered this question otherwise before.
        TutelageError: when that is no answer, or there is no such question of theirs.
    """
    desk, name = _open(settings, job, said.stage)
    with _Places(job.id):
        desk.join(said.person)
        if said.undo:
            if desk.undo(said.person) is None:
                raise TutelageError.at("undo", "there is nothing to take back")
            return _shown(desk, name, said.person)
        task = _task(desk, said)
        if said.comment:
            desk.comment(said.person, task, said.comment)
        elif not said.order:
            raise TutelageError.at("order", "is empty", "give an order, `bad`, `skip`, or a comment")
        if said.order:
            try:
                judge_typed(desk, said.person, task, said.order.strip().lower(), said.seconds)
            except ValueError as error:
                raise TutelageError.at("order", str(error)) from None
        return _shown(desk, name, said.person)


def _open(settings: Settings, job: Job, stage: str) -> tuple[Desk, str]:
    with _Places(job.id):
        desk, record = desk_of(RunFolder.open(job_folder(settings, job.id) / "run"), stage, "stage")
    if desk.plan.simulated:
        raise refused(409, job.id, f"asks nobody: the reward {desk.plan.simulated} stands in for people")
    if record.state == "succeeded":
        raise refused(409, job.id, "its rankings were made into data already", code="ranking_over")
    return desk, record.name


def _task(desk: Desk, said: Judgement) -> Task:
    """The question that is meant, which must be one of this person's or one that others have left open."""
    mine = {task.id: task for task in [*desk.assigned(said.person), *desk.pending(said.person, more=True)]}
    if said.question not in mine:
        raise TutelageError.at("question", f"{said.question!r} is none that you are asked", "ask for the next one")
    return mine[said.question]


def _shown(desk: Desk, stage: str, person: str) -> RankingDesk:
    pending = desk.pending(person)
    total = len(desk.assigned(person))
    question = None
    if pending:
        task, number = pending[0], total - len(pending) + 1
        answers = lettered(desk, person, task)
        question = Question(id=task.id, number=number, of=total, prompt=text_of(task.prompt), answers=answers)
    given, wanted = desk.given(), desk.plan.wanted
    return RankingDesk(
        stage=stage,
        person=person,
        question=question,
        left=len(pending),
        given=given,
        wanted=wanted,
        enough=given >= wanted,
    )


class _Places:
    """Turns the command line's places into those of a request."""

    _NAMES = {"--person": "person", "--stage": "stage"}

    def __init__(self, job_id: str) -> None:
        self._job = job_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: object, __: object) -> None:
        if not isinstance(error, TutelageError) or type(error) is not TutelageError:
            return
        first = error.problems[0]
        if first.place == "rank":
            raise refused(409, "question", first.wrong, first.fix, code="answered_otherwise") from None
        problems = [
            Problem(place=self._NAMES.get(each.place) or self._job, wrong=each.wrong)
            if each.place.startswith(("-", "/"))
            else each
            for each in error.problems
        ]
        raise TutelageError(problems) from None
