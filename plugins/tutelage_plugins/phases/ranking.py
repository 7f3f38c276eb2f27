"""People rank answers: the run waits for them, and what they say becomes data to learn preferences from."""

from __future__ import annotations

import json
import os
import shlex
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, to_builtins

import tutelage
from tutelage.errors import Problem, RunWaiting, TutelageError
from tutelage.formats import Prompt, Prompted
from tutelage.formats import Ranking as Ranked
from tutelage.marks import DATA, asks_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from tutelage.engine.context import StageContext
    from tutelage.formats import Record
    from tutelage.ranking.desk import Desk
    from tutelage.ranking.figures import Figures
    from tutelage.ranking.tasks import Plan, Task
    from tutelage.reward import Weighted

_NUMBERS = ("noise", "tie_margin")
_AT_ONCE = 64
"Questions that a simulation scores at once."


class RankingConfig(tutelage.Config):
    """How people rank."""

    people: Annotated[
        list[str] | int, Meta(description="Who ranks: names, or how many people, who then come as they like.")
    ] = 1
    overlap: Annotated[int, Meta(ge=1, le=1000, description="How many people get each prompt.")] = 1
    gold: Annotated[
        str,
        DATA,
        Meta(
            description="Rankings that are known to be right (rows of prompt, answers and ranks), to test people with."
        ),
    ] = ""
    gold_share: Annotated[
        float, Meta(ge=0, le=0.5, description="How much of what a person gets are such questions, mixed in unmarked.")
    ] = 0.1
    enough: Annotated[
        float, Meta(ge=0, le=1, description="Share of the judgements asked for after which the run can go on.")
    ] = 1.0
    exclude: Annotated[list[str], Meta(description="People whose judgements are not to count.")] = []
    doubtful: Annotated[
        Literal["tell", "exclude", "wait"],
        Meta(
            description="When a person's choices look random: tell and go on, leave them out, or wait until `exclude` "
            "or this field says what to do."
        ),
    ] = "tell"
    least_agreement: Annotated[
        float, Meta(ge=-1, le=1, description="Kendall's tau below which it is told that people hardly agree.")
    ] = 0.2
    simulated: Annotated[
        dict[str, Any] | None,
        asks_for("reward"),
        Meta(
            description="For tests and demonstrations: a reward that ranks instead of people, `{kind: length, noise: "
            "0.5, tie_margin: 0.1}`, or several, `{rewards: [...], noise: 0.5}`; noise and margin in standard "
            "deviations of all scores."
        ),
    ] = None

    def __post_init__(self) -> None:
        _check_people(self.people)
        if self.overlap > self.seats:
            raise ValueError(f"overlap is {self.overlap}, more than the people who rank ({self.seats})")
        if isinstance(self.people, list) and (unknown := sorted({*self.exclude} - {*self.people})):
            raise ValueError(f"exclude names {unknown[0]!r}, who is not among people")
        for field in _NUMBERS:
            value = (self.simulated or {}).get(field, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
                raise ValueError(f"simulated.{field} is {value!r}, not a number from 0")

    @property
    def seats(self) -> int:
        """How many people rank."""
        return self.people if isinstance(self.people, int) else len(self.people)


class Ranking(tutelage.Phase):
    """People order answers best to worst with `tutelage rank`; the run waits, then makes a dataset of rankings.

    Takes rows of a prompt and its answers, such as the phase `comparisons` makes.
    """

    name = "ranking"
    Config = RankingConfig
    config: RankingConfig
    takes = (Prompted, Ranked)
    makes = "dataset"
    gives = (Ranked,)

    def references(self) -> dict[str, str]:
        named = [reward.reward.references() for reward in self._rewards("", [])]
        return {f"simulated.{field}": reference for found in named for field, reference in found.items()}

    def sources(self) -> dict[str, tuple[str, tuple[type, ...]]]:
        return {"gold": (self.config.gold, (Ranked,))} if self.config.gold else {}

    def check(self, stage: tutelage.Stage, place: str) -> list[Problem]:
        problems: list[Problem] = []
        self._rewards(f"{place}.phase.simulated", problems)
        return problems

    def examine_records(
        self,
        records: list[tuple[str, Record]],
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        stage: tutelage.Stage,
        place: str,
    ) -> list[Problem]:
        _tasks(records, f"{place}.data", [])
        return []

    def run(self, context: StageContext) -> tutelage.Artifact:
        """Ask, or make the dataset of what was answered.

        Raises:
            RunWaiting: while judgements are missing.
            TutelageError: when the data can't be ranked, or nothing that was answered can be learnt from.
        """
        from tutelage.ranking.desk import Desk, desk_folder
        from tutelage.ranking.figures import figures

        if os.environ.get("RANK", "0") != "0":  # of several processes one is enough
            return tutelage.Artifact("dataset", context.folder / "dataset")
        plan, prompts = self._plan(context)
        desk = Desk.set_up(desk_folder(context.run.path, context.stage.name), plan)
        if self.config.simulated is not None:
            self._simulate(context, desk, prompts)
        found = figures(desk)
        if not found.done:
            missing = f"waits for people: {found.given} of {found.wanted} judgements are in"
            fix = f"tutelage rank {_called(context)} (--status: who has done what), then tutelage resume"
            raise RunWaiting.at(f"stages.{context.stage.name}", missing, f"{fix} {_called(context)}")
        excluded = self._doubts(context, found)
        return _make(context, desk, figures(desk, excluded) if excluded else found, excluded)

    def _plan(self, context: StageContext) -> tuple[Plan, dict[str, Prompted]]:
        """The questions, and the record that each prompt comes from."""
        from tutelage.ranking.tasks import Plan

        notes: list[str] = []
        records = context.records()
        gold = self._gold(context)
        known = {task.id for task in gold}
        tasks = _tasks(records, f"stages.{context.stage.name}.data", notes)
        if repeated := sum(task.id in known for task in tasks):
            notes.append(f"{repeated} prompts are among those with known answers, and asked as such only")
        for note in notes:
            context.emit("notice", text=f"{context.stage.name}: {note}")
        config = self.config
        people = config.people if isinstance(config.people, list) else []
        if config.simulated is not None and not people:
            people = [f"simulated-{number}" for number in range(1, config.seats + 1)]
        plan = Plan(
            tasks=[*(task for task in tasks if task.id not in known), *gold],
            people=people,
            seats=config.seats,
            overlap=config.overlap,
            seed=context.stage.trainer.seed,
            gold_share=config.gold_share,
            enough=config.enough,
            exclude=config.exclude,
            simulated=" and ".join(each.name for each in self._rewards("", [])),
        )
        return plan, {_key(record.prompt): record for _, record in records if isinstance(record, Prompted)}

    def _gold(self, context: StageContext) -> list[Task]:
        """Questions with known answers.

        Raises:
            TutelageError: when the rows that `gold` names are no rankings.
        """
        from tutelage.ranking.tasks import Task, task_id

        found: dict[str, Task] = {}
        for _, record in context.records(self.config.gold, takes=(Ranked,)) if self.config.gold else []:
            assert isinstance(record, Ranked)
            ranks = dict(zip(record.answers, record.ranks, strict=True))
            name = task_id(record.prompt, list(ranks))
            found[name] = Task(id=name, prompt=record.prompt, answers=list(ranks), gold=list(ranks.values()))
        return list(found.values())

    def _rewards(self, place: str, problems: list[Problem]) -> list[Weighted]:
        from tutelage.plugins import host
        from tutelage.reward import rewards_of

        if self.config.simulated is None:
            return []
        settings = {key: value for key, value in self.config.simulated.items() if key not in _NUMBERS}
        if isinstance(several := settings.get("rewards"), list):
            return rewards_of(several, host(), f"{place}.rewards", problems)
        found: list[Problem] = []
        rewards = rewards_of([settings], host(), place, found)
        problems += [
            Problem(place=each.place.replace(f"{place}.0", place), wrong=each.wrong, fix=each.fix) for each in found
        ]
        return rewards

    def _simulate(self, context: StageContext, desk: Desk, prompts: dict[str, Prompted]) -> None:
        from tutelage.ranking.simulated import simulate
        from tutelage.reward import total

        name, problems = context.stage.name, list[Problem]()
        rewards = self._rewards(f"stages.{name}.phase.simulated", problems)
        if problems:
            raise TutelageError(problems)
        text = f"{name}: nobody is asked: answers are ranked by the reward {desk.plan.simulated} (simulated)"
        context.emit("notice", text=text)
        begun = context.folder / "simulated"
        if not begun.exists():  # a desk outlives a stage that begins anew, which may be simulated otherwise now
            desk.clear()
            begun.touch()

        def scores(tasks: Sequence[Task]) -> list[list[float]]:
            for each in rewards:
                each.reward.load(context)
            found: list[list[float]] = []
            steps = -(-len(tasks) // _AT_ONCE)
            for step in range(steps):
                began = monotonic()
                chunk = tasks[step * _AT_ONCE : (step + 1) * _AT_ONCE]
                asked = [prompts.get(_key(task.prompt), Prompted(task.prompt)) for task in chunk for _ in task.answers]
                given = iter(total(rewards, asked, [answer for task in chunk for answer in task.answers])[0])
                found += [[next(given) for _ in task.answers] for task in chunk]
                context.emit("step", step=step + 1, steps=steps, seconds=monotonic() - began)
            return found

        numbers = {field: float((self.config.simulated or {}).get(field, 0)) for field in _NUMBERS}
        simulate(desk, scores, **numbers)

    def _doubts(self, context: StageContext, found: Figures) -> list[str]:
        """Tell of people who hardly agree or don't look careful; who is to be left out for it.

        Raises:
            RunWaiting: when somebody is to say what becomes of them.
        """
        from tutelage.ranking.figures import sentence

        stage, config = context.stage.name, self.config
        if found.tau is not None and found.tau < config.least_agreement:
            agree = f"people hardly agree: Kendall's tau is {found.tau:.2f} (least_agreement {config.least_agreement})"
            context.emit("notice", text=f"{stage}: {agree}; are the answers different enough, and the task clear?")
        names = [person.name for person in found.doubtful]
        for person in found.doubtful:
            context.emit("notice", text=f"{stage}: {sentence(person)}")
        if names and config.doubtful == "wait":
            doubts = "; ".join(sentence(person) for person in found.doubtful)
            listed = ", ".join([*config.exclude, *names])
            fix = f"tutelage resume {_called(context)} --set 'stages.{stage}.phase.exclude=[{listed}]'"
            raise RunWaiting.at(f"stages.{stage}", doubts, f"{fix}, or --set stages.{stage}.phase.doubtful=tell")
        if names and config.doubtful == "exclude":
            context.emit(
                "notice", text=f"{stage}: the judgements of {', '.join(names)} are left out (doubtful: exclude)"
            )
            return names
        if names:
            context.emit(
                "notice", text=f"{stage}: they count all the same; phase.exclude: [{', '.join(names)}] changes it"
            )
        return []


def _make(context: StageContext, desk: Desk, found: Figures, excluded: list[str]) -> tutelage.Artifact:
    """Write the dataset, and beside it how far people agree."""
    from tutelage.ranking.consensus import rows_of
    from tutelage.runs.files import write_atomically

    rows, left_out = rows_of(desk.plan.tasks, desk.said(), found.by, {*desk.plan.exclude, *excluded})
    stage = context.stage.name
    if left_out:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        context.emit("notice", text=f"{stage}: no row is made of {left_out.total()} prompts ({told})")
    if not rows:
        fix = "let people judge more prompts, or sample answers that differ more"
        raise TutelageError.at(f"stages.{stage}", "no prompt has answers of which one is preferred", fix)
    folder = context.folder / "dataset"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "agreement.json", json.dumps(to_builtins(found), ensure_ascii=False, indent=1) + "\n")
    write_atomically(folder / "data.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    metrics = {
        "rows": len(rows),
        "left_out": left_out.total(),
        "judgements": found.given,
        "people": sum(not person.excluded for person in found.people),
        "alpha": found.alpha,
        "tau": found.tau,
        "pairs_alike": found.pairs_alike,
        "doubtful": len(found.doubtful),
        "simulated": int(found.by == "simulated"),
    }
    context.emit("ranking", by=found.by, **metrics)
    return tutelage.Artifact(
        "dataset", folder, {key: float(value) for key, value in metrics.items() if value is not None}
    )


def _tasks(records: list[tuple[str, Record]], place: str, notes: list[str]) -> list[Task]:
    """The questions that a stage's records ask.

    Raises:
        TutelageError: with every row whose answers can't be ranked; when there is nothing to rank at all.
    """
    from tutelage.ranking.tasks import make_tasks

    tasks = make_tasks([(where, *_question(record)) for where, record in records], notes)
    if not tasks:
        fix = "sample several answers a prompt, with a temperature over 0"
        raise TutelageError.at(place, "holds nothing to rank: no prompt has two different answers", fix)
    return tasks


def _question(record: Record) -> tuple[Prompt, Any, Any]:
    """Prompt, answers, and who made them. A ranking is asked anew."""
    if isinstance(record, Prompted):
        return record.prompt, record.fields.get("answers"), record.fields.get("made_by")
    assert isinstance(record, Ranked)
    return record.prompt, record.answers, None


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True)


def _called(context: StageContext) -> str:
    """The run as a command here names it."""
    from tutelage.runs.listing import runs_root

    path = context.run.path
    return shlex.quote(path.name if path.parent == runs_root() else str(path))


def _check_people(people: list[str] | int) -> None:
    """Raises ValueError with a sentence."""
    from tutelage.ranking.tasks import NAME

    if isinstance(people, int):
        if not 1 <= people <= 1000:
            raise ValueError("people must be names, or a number from 1 to 1000")
        return
    if not people:
        raise ValueError("people names nobody; give names, or a number")
    folded = [name.casefold() for name in people]
    for name in people:
        if not NAME.match(name):
            raise ValueError(f"{name!r} can't be a person's name; use letters, digits, spaces and . @ + - _")
        if folded.count(name.casefold()) > 1:
            raise ValueError(f"people names {name!r} twice; capitals don't tell people apart")
