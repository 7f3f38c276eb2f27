"""Answers to compare: several to each prompt, from one or more models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

import tutelage
from tutelage.errors import Problem, RunFailed, TutelageError
from tutelage.formats import Continuation, Conversation, Prompt, Prompted
from tutelage.marks import MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tutelage.engine.context import StageContext
    from tutelage.formats import Record

Temperature = Annotated[float, Meta(ge=0, le=10)]


class ComparisonsConfig(tutelage.Config):
    """Who answers, and how answers are drawn."""

    models: Annotated[
        list[str],
        MODEL,
        Meta(description="Who answers: `stage:NAME`, `run:NAME`, folders …; the stage's own model where empty."),
    ] = []
    samples: Annotated[int, Meta(ge=1, le=1000, description="Answers to each prompt from each model.")] = 4
    temperature: Annotated[
        Temperature | Annotated[list[Temperature], Meta(min_length=1)],
        Meta(description="Of the sampling, or several that a model's answers take in turn. 0: the likeliest answer."),
    ] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1, description="Draw from the likeliest tokens of this share.")] = 1.0
    top_k: Annotated[int, Meta(ge=0, description="Draw from this many likeliest tokens; 0 from all.")] = 0
    max_new_tokens: Annotated[int, Meta(ge=1, le=1_000_000, description="Longest answer, in tokens.")] = 256
    system: Annotated[
        str, Meta(description="A system turn to begin prompts with that have none; it is kept in the data.")
    ] = ""
    distinct: Annotated[
        bool, Meta(description="Draw anew what was answered already; what stays a repetition is left out.")
    ] = True
    retries: Annotated[int, Meta(ge=0, le=100, description="How often a repeated or empty answer is drawn anew.")] = 4
    batch_size: Annotated[int, Meta(ge=1, le=10_000, description="Answers that are drawn at a time.")] = 32

    def __post_init__(self) -> None:
        if repeated := sorted({name for name in self.models if self.models.count(name) > 1}):
            raise ValueError(f"models names {repeated[0]!r} twice; for more answers of a model raise samples")
        if max(1, len(self.models)) * self.samples < 2:
            raise ValueError("one answer to a prompt leaves nothing to compare; set samples to 2 or more")
        if self.distinct and self.temperatures.count(0) > 1:
            raise ValueError("temperature 0 gives the same answer each time; set others beside it, as [0, 0.7, 1]")

    @property
    def temperatures(self) -> list[float]:
        """One for each of a model's answers."""
        given = self.temperature if isinstance(self.temperature, list) else [self.temperature]
        return [given[sample % len(given)] for sample in range(self.samples)]


class Comparisons(tutelage.Phase):
    """Draws several answers to each prompt, from one or more models: data for people, or a judge, to rank.

    A row of what it makes has the `prompt`, the `answers`, who `made_by` each (model, temperature, seed, and whether it
    was finished), and what else the prompt's row had: its reference `answer`, and its `fields`.
    """

    name = "comparisons"
    Config = ComparisonsConfig
    config: ComparisonsConfig
    takes = (Prompted, Conversation, Continuation)
    makes = "dataset"
    gives = (Prompted,)

    def references(self) -> dict[str, str]:
        return {f"models.{index}": reference for index, reference in enumerate(self.config.models)}

    def examine_records(
        self,
        records: list[tuple[str, Record]],
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        stage: tutelage.Stage,
        place: str,
    ) -> list[Problem]:
        """Name prompts that the stage's own model can't answer; of others nothing is known yet."""
        try:
            asked = self._asked(records)
            if not self.config.models:
                self._encoded(asked, tokenizer, window)
        except TutelageError as error:
            return error.problems
        return []

    def run(self, context: StageContext) -> tutelage.Artifact:
        """Make the dataset.

        Raises:
            TutelageError: when a prompt can't be answered.
            RunFailed: when no prompt got two answers that differ.
        """
        from tutelage.engine.making import load_context_model, make_dataset

        asked = self._asked(context.records())
        writers = []
        for reference in self.config.models or [""]:
            model, tokenizer = load_context_model(context, reference)
            writers.append(_Writer(reference, model, tokenizer, self._encoded(asked, tokenizer, _window(model))))
        drawing = _Drawing(self.config, writers, context.stage.trainer.seed)
        at_once = max(1, self.config.batch_size // self.config.samples)
        path = make_dataset(context, asked, drawing.work, batch=at_once)
        metrics = self._counts(context, path, len(asked)) if os.environ.get("RANK", "0") == "0" else {}
        return tutelage.Artifact("dataset", path.parent, metrics)

    def _asked(self, records: list[tuple[str, Record]]) -> list[_Asked]:
        from tutelage.data.problems import RowProblems
        from tutelage.engine.prompting import prompted

        asked, wrong = [], RowProblems()
        for number, (place, record) in enumerate(records):
            try:
                found = prompted(record)
            except ValueError as error:
                wrong.add(place, str(error))
                continue
            asked.append(_Asked(number, place, self._with_system(found.prompt), found.answer, found.fields))
        wrong.raise_any("data")
        if not asked:
            raise TutelageError.at("data", "has no prompts", "name data with at least one")
        return asked

    def _with_system(self, prompt: Prompt) -> Prompt:
        if not self.config.system:
            return prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return (
            turns if turns[0].get("role") == "system" else [{"role": "system", "content": self.config.system}, *turns]
        )

    def _encoded(self, asked: list[_Asked], tokenizer: PreTrainedTokenizerBase, window: int | None) -> list[list[int]]:
        """Each prompt's tokens, for a model that sees so many.

        Raises:
            TutelageError: naming the rows that it can't answer.
        """
        from tutelage.data.problems import RowProblems
        from tutelage.engine.prompting import encode

        prompts, problems = encode([(each.place, Prompted(each.prompt)) for each in asked], tokenizer)
        long, new = RowProblems(), self.config.max_new_tokens
        for place, ids in zip(prompts.places, prompts.ids, strict=True):
            if window is not None and len(ids) + new > window:
                wrong = f"its {len(ids):,} tokens and {new:,} new ones are more than the model's window of {window:,}"
                long.add(place, wrong, "shorten it or leave it out, or lower phase.max_new_tokens")
        if problems := [*problems, *long.listed("data")]:
            raise TutelageError(problems)
        return prompts.ids

    def _counts(self, context: StageContext, path: Path, asked: int) -> dict[str, float]:
        """What was made, as metrics; what is missing is told."""
        rows = [msgspec.json.decode(line, type=_Counted) for line in path.read_bytes().splitlines()]
        answers = sum(len(row.made_by) for row in rows)
        cut = sum(not each.finished for row in rows for each in row.made_by)
        wanted = max(1, len(self.config.models)) * self.config.samples
        fix = "raise the temperature, or max_new_tokens if answers are cut short"
        if not rows:
            raise RunFailed.at(context.stage.name, f"none of {asked:,} prompts got two answers that differ", fix)
        if (missing := len(rows) * wanted - answers) or len(rows) < asked:
            told = f"{asked - len(rows):,} of {asked:,} prompts got less than two different answers and are left out"
            context.emit("notice", text=f"{told}; {missing:,} answers of the others repeated one or were empty")
        return {"prompts": len(rows), "left_out": asked - len(rows), "answers": answers, "cut": cut / answers}


def _window(model: Any) -> int | None:
    """The tokens that a model can see beside those of a soft prompt."""
    from tutelage.models.prompts import soft_tokens

    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return window - soft_tokens(model) if isinstance(window, int) else None


class _Maker(msgspec.Struct):
    finished: bool


class _Counted(msgspec.Struct):
    """Of a row, what is counted."""

    made_by: list[_Maker]


class _Asked(msgspec.Struct, frozen=True):
    """A prompt of the data."""

    number: int
    place: str
    prompt: Prompt
    answer: str
    fields: dict[str, Any]


@dataclass
class _Writer:
    """A model that answers, and every prompt as its tokens."""

    name: str
    model: Any
    tokenizer: Any
    ids: list[list[int]]


@dataclass
class _Slot:
    """An answer that is wanted: which prompt's, from whom, and how; and the answer once there is a good one."""

    asked: _Asked
    writer: int
    sample: int
    temperature: float
    seed: int = 0
    text: str = ""
    finished: bool = False


class _Drawing:
    """Draws the answers of a batch of prompts."""

    def __init__(self, config: ComparisonsConfig, writers: list[_Writer], seed: int) -> None:
        self._config = config
        self._writers = writers
        self._seed = seed

    def work(self, batch: list[_Asked]) -> list[list[dict[str, Any]]]:
        """A row for each prompt; none for one that did not get two answers."""
        slots = {asked.number: list(self._slots(asked)) for asked in batch}
        wanted = [slot for each in slots.values() for slot in each]
        for attempt in range(self._config.retries + 1):
            if attempt:
                wanted = [slot for slot in wanted if slot.temperature > 0]
            self._draw(wanted, attempt)
            wanted = [slot for each in slots.values() for slot in self._unfit(each)]
            if not wanted:
                break
        for slot in wanted:
            slots[slot.asked.number].remove(slot)
        return [[self._row(slots[asked.number])] if len(slots[asked.number]) > 1 else [] for asked in batch]

    def _slots(self, asked: _Asked) -> Iterator[_Slot]:
        for writer in range(len(self._writers)):
            for sample, temperature in enumerate(self._config.temperatures):
                yield _Slot(asked, writer, sample, temperature)

    def _draw(self, slots: list[_Slot], attempt: int) -> None:
        """Draw an answer for each slot: what one model draws at one temperature is drawn together."""
        from tutelage.models.sampling import ends_of, sample, seed_of, text

        for writer, temperature in sorted({(slot.writer, slot.temperature) for slot in slots}):
            part = [slot for slot in slots if (slot.writer, slot.temperature) == (writer, temperature)]
            for slot in part:
                slot.seed = seed_of(self._seed, slot.asked.number, writer, slot.sample, attempt)
            who = self._writers[writer]
            drawn = sample(
                who.model,
                [who.ids[slot.asked.number] for slot in part],
                max_new_tokens=self._config.max_new_tokens,
                temperature=temperature,
                top_p=self._config.top_p,
                top_k=self._config.top_k,
                seeds=[slot.seed for slot in part],
                batch_size=self._config.batch_size,
                **ends_of(who.model, who.tokenizer),
            )
            for slot, answer in zip(part, drawn, strict=True):
                slot.text, slot.finished = text(who.tokenizer, answer).strip(), answer.finished

    def _unfit(self, slots: list[_Slot]) -> list[_Slot]:
        """Of one prompt's answers, those that are empty or (where that matters) were given before."""
        unfit, seen = [], set()
        for slot in slots:
            if not slot.text or (self._config.distinct and slot.text in seen):
                unfit.append(slot)
            seen.add(slot.text)
        return unfit

    def _row(self, slots: list[_Slot]) -> dict[str, Any]:
        asked = slots[0].asked
        row: dict[str, Any] = {"prompt": asked.prompt, "answers": [slot.text for slot in slots]}
        if asked.answer:
            row["answer"] = asked.answer
        if asked.fields:
            row["fields"] = asked.fields
        row["made_by"] = [
            {
                "model": self._writers[slot.writer].name or "own",
                "temperature": slot.temperature,
                "seed": slot.seed,
                "finished": slot.finished,
            }
            for slot in slots
        ]
        return row
