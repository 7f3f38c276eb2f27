"""Where people rank: a stage's questions and what was said of them, in one folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from tutelage.config import did_you_mean
from tutelage.errors import Problem, TutelageError
from tutelage.ranking.judgements import ANSWERS, Judgement, JudgementLog, Kind, Said, standing
from tutelage.ranking.tasks import NAME, Plan, Task, assignments, load, save, shown_order
from tutelage.runs.folder import now

_TASKS = "tasks.json"
_JUDGEMENTS = "judgements.jsonl"


def desk_folder(run: Path, stage: str) -> Path:
    """Where a stage's desk stands: in the run, not in the stage, as people's work outlives a stage that begins anew."""
    return run / "ranking" / stage


class Desk:
    """The questions of a stage, and the record of judgements. What is said is durable when a call returns."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.log = JudgementLog(folder / _JUDGEMENTS)
        self.tasks = {task.id: task for task in plan.tasks}
        self._lots = assignments(plan)

    @classmethod
    def set_up(cls, folder: Path, plan: Plan) -> Desk:
        """Write the plan. Judgements that were given before stay; those of questions that are gone do not count."""
        folder.mkdir(parents=True, exist_ok=True)
        save(plan, folder / _TASKS)
        return cls(folder, plan)

    @classmethod
    def open(cls, folder: Path) -> Desk:
        """The desk in a folder.

        Raises:
            TutelageError: when there is none, or it is damaged.
        """
        return cls(folder, load(folder / _TASKS))

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder holds one."""
        return (folder / _TASKS).is_file()

    def entries(self) -> list[Judgement]:
        """Every line of the record that counts here: the simulation's where there is one, else people's."""
        return self._counted(self.log.read())

    def _counted(self, entries: list[Judgement]) -> list[Judgement]:
        simulated = bool(self.plan.simulated)
        return [entry for entry in entries if (entry.by == "simulated") == simulated]

    def _append(self, decide: Callable[[list[Judgement]], list[Judgement]]) -> list[Judgement]:
        return self.log.append(lambda entries: decide(self._counted(entries)))

    def said(self) -> Said:
        """For each question that there is, each person's answer that stands."""
        return {task: given for task, given in standing(self.entries()).items() if task in self.tasks}

    def people(self, entries: Sequence[Judgement] | None = None) -> list[str]:
        """Who ranks here: those who are named, or those who came, in their order."""
        came = dict.fromkeys(entry.person for entry in (self.entries() if entries is None else entries))
        return self.plan.people or list(came)

    def join(self, person: str) -> str:
        """Let a person in, who is given the next free seat; who is in already stays.

        Returns:
            the name as it is known here.
        Raises:
            TutelageError: when the name is not one of those who may rank, or no seat is free.
        """
        self._append(lambda entries: self._let_in(person, entries))
        return person

    def _let_in(self, person: str, entries: list[Judgement]) -> list[Judgement]:
        known = self.people(entries)
        if person in known:
            return []
        if self.plan.people:
            raise TutelageError.at("--person", f"{person!r} is not asked to rank here", did_you_mean(person, known))
        if not NAME.match(person):
            fix = "use letters, digits, spaces and . @ + - _, at most 100"
            raise TutelageError.at("--person", f"{person!r} can't be a name", fix)
        alike = next((name for name in known if name.casefold() == person.casefold()), None)
        if alike:
            raise TutelageError.at("--person", f"{person!r} and {alike!r} differ only in capitals", f"use {alike!r}")
        if len(known) >= self.plan.seats:
            wrong = f"{person!r} has no seat: {self.plan.seats} may rank, and {', '.join(known)} came first"
            run, stage = self.folder.parent.parent.name, self.folder.name
            others = f"tutelage resume {shlex.quote(run)} --set stages.{stage}.phase.people=…, a number or [names]"
            raise TutelageError.at("--person", wrong, f"use one of these names, or say who may rank: {others}")
        return [Judgement(kind="joined", person=person, at=now())]

    def assigned(self, person: str) -> list[Task]:
        """The questions of a person, in their order; none for who has no seat."""
        people = self.people()
        return self._lots[people.index(person)] if person in people[: self.plan.seats] else []

    def pending(self, person: str, more: bool = False) -> list[Task]:
        """What a person is still to answer; with `more`, then what others have not answered either."""
        said = self.said()
        left = [task for task in self.assigned(person) if person not in said.get(task.id, {})]
        if more:
            known = {task.id for task in left}
            left += [
                task
                for task in self.plan.tasks
                if task.gold is None
                and task.id not in known
                and person not in said.get(task.id, {})
                and self._answers(said, task) < self.plan.overlap
            ]
        return left

    def _answers(self, said: Said, task: Task) -> int:
        return sum(name not in self.plan.exclude for name in said.get(task.id, {}))

    def given(self) -> int:
        """Judgements so far, of those asked for."""
        said = self.said()
        return sum(min(self.plan.overlap, len(said.get(task.id, {}))) for task in self.plan.tasks if task.gold is None)

    def judge(
        self, person: str, task: Task, kind: Kind, ranks: Sequence[float] = (), seconds: float | None = None
    ) -> Judgement:
        """Note an answer: an order (`ranks`, in the task's order of answers), that all are bad, or that it is skipped.

        Raises:
            TutelageError: when this person has answered the question already, as they may in another window.
        """
        entry = Judgement(
            kind=kind,
            person=person,
            at=now(),
            task=task.id,
            ranks=list(ranks),
            shown=shown_order(self.plan, person, task),
            seconds=seconds,
        )
        self._append(lambda entries: [*self._let_in(person, entries), *self._new(entry, entries)])
        return entry

    def _new(self, entry: Judgement, entries: list[Judgement]) -> list[Judgement]:
        before = standing(entries).get(entry.task, {}).get(entry.person)
        if before is None:
            return [entry]
        if before.same_as(entry):
            return []
        wrong = f"{entry.person} answered this question otherwise at {before.at}"
        raise TutelageError.at("rank", wrong, "undo that first; nothing was changed")

    def comment(self, person: str, task: Task, text: str) -> None:
        """Note what a person has to say of a question."""
        entry = Judgement(kind="comment", person=person, at=now(), task=task.id, comment=text)
        self._append(lambda entries: [*self._let_in(person, entries), entry])

    def undo(self, person: str) -> Task | None:
        """Take a person's last answer back.

        Returns:
            its question, or None when there is nothing to take back.
        """

        def take_back(entries: list[Judgement]) -> list[Judgement]:
            stands = [
                given[person] for task, given in standing(entries).items() if task in self.tasks and person in given
            ]
            last = max(stands, key=entries.index, default=None)
            return [Judgement(kind="undo", person=person, at=now(), task=last.task)] if last else []

        added = self._append(take_back)
        return self.tasks[added[0].task] if added else None

    def clear(self) -> None:
        """Take back every answer that counts here."""

        def take_back(entries: list[Judgement]) -> list[Judgement]:
            stands = [entry for given in standing(entries).values() for entry in given.values()]
            return [
                Judgement(kind="undo", person=entry.person, at=now(), task=entry.task, by=entry.by) for entry in stands
            ]

        self._append(take_back)

    def add(self, judgements: Sequence[tuple[str, Judgement]]) -> int:
        """Note judgements that were given elsewhere, each with the place that it comes from; all of them or none.

        Returns:
            how many were new: those that stand here already, just so, are left out.
        Raises:
            TutelageError: with every judgement of an unknown person, or that contradicts one that stands.
        """

        def check(entries: list[Judgement]) -> list[Judgement]:
            problems: list[Problem] = []
            added: list[Judgement] = []
            for place, judgement in judgements:
                try:
                    added += self._let_in(judgement.person, [*entries, *added])
                    added += self._new(judgement, entries)
                except TutelageError as error:
                    problem = error.problems[0]
                    problems.append(Problem(place=place, wrong=problem.wrong, fix=problem.fix))
            if problems:
                raise TutelageError(problems)
            return added

        return sum(entry.kind in ANSWERS for entry in self._append(check))
