"""Answers prompts, criticises the answers and revises them, a batch of prompts at a time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from tutelage.constitution import Constitution, Principle
from tutelage.data.problems import RowProblems
from tutelage.engine.making import load_context_model, make_dataset
from tutelage.engine.prompting import prompted
from tutelage.errors import RunFailed
from tutelage.formats import Record
from tutelage.models.sampling import seed_of
from tutelage.phase import Artifact
from tutelage_plugins.constitutions import revising
from tutelage_plugins.constitutions.keeping import is_first_process, sort_out, tell, tell_doubts
from tutelage_plugins.constitutions.revising import Messages
from tutelage_plugins.constitutions.writing import Window, Writer

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext
    from tutelage.recipe import Stage
    from tutelage_plugins.phases.critique_revision import CritiqueRevisionConfig

Outcome = Literal["revised", "unchanged", "copied", "empty", "cut", "too_long"]
_SAID: dict[str, str] = {
    "copied": "gave back what the model had been shown",
    "empty": "were empty",
    "cut": "were cut at max_new_tokens",
    "too_long": "could not be asked for within the model's window",
}


class Item(msgspec.Struct, frozen=True):
    """A prompt to answer, by the principles of its rounds. What is drawn for it depends on its number and the seed."""

    number: int
    messages: Messages
    given: str
    principles: list[Principle]
    words: str
    "A digest of the template's, so that what was made with other words is not taken over."


class Draft(msgspec.Struct):
    """An answer while it is mended."""

    item: Item
    first: str
    answer: str
    finished: bool
    steps: list[dict[str, Any]] = msgspec.field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """What the dataset says of it."""
        messages = [*self.item.messages, {"role": "assistant", "content": self.answer}]
        return {"messages": messages, "first": self.first, "steps": self.steps, "finished": self.finished}


def mend(
    context: StageContext, config: CritiqueRevisionConfig, constitution: Constitution, template: revising.Template
) -> Artifact:
    """Make the dataset of a stage of phase critique_revision.

    Raises:
        TutelageError: when prompts can't be answered, or nothing usable was written.
    """
    seed = context.stage.trainer.seed
    tell_doubts(context, constitution)
    model, tokenizer = load_context_model(context)
    writer = Writer(model, tokenizer, temperature=config.temperature, top_p=config.top_p, batch_size=config.batch_size)
    records = context.records()
    asked = fitting(records, writer.window, config, context.stage)
    if lost := len(records) - len(asked):
        tell(context, f"{lost:,} of {len(records):,} prompts are left out: they are longer than the window")
    items = [
        Item(number, each.messages, each.given, constitution.draw(config.rounds, seed, number), template.digest())
        for number, each in enumerate(asked)
    ]
    mender = Mender(writer, template, config, seed)
    path = make_dataset(context, items, mender.work, batch=config.batch_size)
    if not is_first_process():
        return Artifact("dataset", path.parent)
    kept, left = sort_out(path, lambda row: bool(_answer(row)) and (row["finished"] or config.allow_cut), constitution)
    return Artifact("dataset", path.parent, _told(context, kept, left))


def fitting(
    records: list[tuple[str, Record]], window: Window, config: CritiqueRevisionConfig, stage: Stage
) -> list[Asked]:
    """What records ask that the model can be asked.

    Raises:
        TutelageError: for prompts that it can't answer.
    """
    asked = asked_of(records, given=config.first == "given")
    allowed = stage.data.allow_loss if stage.data else 0.0
    fit = window.fitting([(each.place, each.messages) for each in asked], config.max_new_tokens, allowed)
    return [asked[number] for number in fit]


class Asked(msgspec.Struct, frozen=True):
    """A prompt as messages, and the answer that the data has to it."""

    place: str
    messages: Messages
    given: str


def asked_of(records: list[tuple[str, Record]], *, given: bool) -> list[Asked]:
    """What records ask.

    Args:
        given: whether each must have an answer too.
    Raises:
        TutelageError: for those that ask nothing, or have none.
    """
    found = []
    wrong = RowProblems()
    for place, record in records:
        try:
            asked = prompted(record)
        except ValueError as error:
            wrong.add(place, str(error))
            continue
        if given and not asked.answer.strip():
            wrong.add(place, "has no answer to revise", "add one, or let the model answer (first: own)")
        prompt = asked.prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        found.append(Asked(place, messages, asked.answer))
    if not records:
        wrong.add("data", "has no prompts", "name data with at least one")
    wrong.raise_any("data")
    return found


class Mender:
    """Mends a model's answers by the principles that they were drawn."""

    def __init__(self, writer: Writer, template: revising.Template, config: CritiqueRevisionConfig, seed: int) -> None:
        self.writer = writer
        self.template = template
        self.config = config
        self.seed = seed

    def work(self, items: list[Item]) -> list[list[dict[str, Any]]]:
        """A row for each item."""
        drafts = self._first(items)
        for turn in range(self.config.rounds):
            self._revise(drafts, turn)
        return [[draft.row()] for draft in drafts]

    def _first(self, items: list[Item]) -> list[Draft]:
        if self.config.first == "given":
            return [Draft(item, item.given, item.given, finished=True) for item in items]
        prompts = [self.writer.window.ids(item.messages) for item in items]
        seeds = [seed_of(self.seed, item.number) for item in items]
        written = self._written(prompts, seeds, self.config.max_new_tokens)
        return [Draft(item, each.text, each.text, each.finished) for item, each in zip(items, written, strict=True)]

    def _written(self, dialogues: list[list[int]], seeds: list[int], new: int) -> list[Written]:
        drawn = self.writer.draw(dialogues, seeds, new)
        return [Written(self.writer.text(each), each.finished) for each in drawn]

    def _revise(self, drafts: list[Draft], turn: int) -> None:
        """One round: each draft is criticised, then revised, by the principle whose turn it is."""
        steps = [_Step(draft, draft.item.principles[turn]) for draft in drafts]
        for kind, new in (("critique", self.config.critique_tokens), ("revision", self.config.max_new_tokens)):
            asked = [(step, self._asked(step, kind, new)) for step in steps]
            fits = [(step, ids) for step, ids in asked if ids is not None]
            seeds = [seed_of(self.seed, step.draft.item.number, turn, kind == "revision") for step, _ in fits]
            written = self._written([ids for _, ids in fits], seeds, new)
            for (step, _), each in zip(fits, written, strict=True):
                setattr(step, kind, each)
        for step in steps:
            self._take(step)

    def _asked(self, step: _Step, kind: str, new: int) -> list[int] | None:
        """A request as tokens; None where it does not fit the window."""
        prompt, answer = revising.transcript(step.draft.item.messages), step.draft.answer

        def dialogue(skip: int) -> Messages:
            if kind == "critique":
                return self.template.asking_critique(prompt, answer, step.principle, skip)
            found = step.critique.text if step.critique else ""
            return self.template.asking_revision(prompt, answer, found, step.principle, skip)

        return self.writer.window.fitted(dialogue, len(self.template.examples), new)

    def _take(self, step: _Step) -> None:
        """Take a revision as the answer, or keep the former one, and note which."""
        draft, outcome = step.draft, self._outcome(step)
        revision = step.revision or Written("", finished=False)
        critique = step.critique.text if step.critique else ""
        draft.steps.append(
            {
                "principle": step.principle.id,
                "critique": critique,
                "critique_copied": revising.copies(critique, self.template.wording(step.principle)),
                "revision": revision.text,
                "outcome": outcome,
            }
        )
        if outcome == "revised":
            draft.answer, draft.finished = revision.text, revision.finished

    def _outcome(self, step: _Step) -> Outcome:
        revision = step.revision
        if revision is None:
            return "too_long"
        if not revision.text:
            return "empty"
        if not revision.finished and not self.config.allow_cut:
            return "cut"
        if revising.copies(revision.text, self.template.wording(step.principle)) or self._repeats(step):
            return "copied"
        return "unchanged" if revising.same(revision.text, step.draft.answer) else "revised"

    def _repeats(self, step: _Step) -> bool:
        """Whether a revision is the question or the critique over again."""
        revision = step.revision.text if step.revision else ""
        question = step.draft.item.messages[-1]["content"]
        return revising.same(revision, question) or bool(step.critique and revising.same(revision, step.critique.text))


class Written(msgspec.Struct, frozen=True):
    """What the model wrote, and whether it ended by itself."""

    text: str
    finished: bool


class _Step(msgspec.Struct):
    """A round of one draft."""

    draft: Draft
    principle: Principle
    critique: Written | None = None
    revision: Written | None = None


def _answer(row: dict[str, Any]) -> str:
    answer: str = row["messages"][-1]["content"]
    return answer


def _told(context: StageContext, kept: list[dict[str, Any]], left: list[dict[str, Any]]) -> dict[str, float]:
    """Tell how it went in words and events, and give the numbers.

    Raises:
        RunFailed: when no row was kept.
    """
    taken = [step for row in [*kept, *left] for step in row["steps"]]
    steps = Counter(step["outcome"] for step in taken)
    for outcome, said in _SAID.items():
        if steps[outcome]:
            text = f"{steps[outcome]:,} of {steps.total():,} revisions {said}; the former answers were kept"
            context.emit("notice", text=text)
    if left:
        text = f"{len(left):,} of {len(kept) + len(left):,} prompts are left out: their answers were cut or empty"
        context.emit("notice", text=text)
    if not kept:
        wrong = "no prompt got an answer that ended by itself"
        raise RunFailed.at(f"stages.{context.stage.name}", wrong, "raise phase.max_new_tokens, or set phase.allow_cut")
    numbers = {
        "rows": float(len(kept)),
        "left_out": float(len(left)),
        "revised": sum(row["first"] != _answer(row) for row in kept) / len(kept),
        "first_words": sum(len(row["first"].split()) for row in kept) / len(kept),
        "final_words": sum(len(_answer(row).split()) for row in kept) / len(kept),
    }
    numbers["critiques_copied"] = sum(step["critique_copied"] for step in taken) / len(taken)
    numbers |= {f"steps_{outcome}": steps[outcome] / steps.total() for outcome in get_args(Outcome)}
    context.emit("conclusion", **numbers)
    return numbers
