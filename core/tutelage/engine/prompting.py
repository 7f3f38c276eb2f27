"""The prompts of a phase that answers them itself, as the tokens that the policy is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tutelage.data.problems import RowProblems
from tutelage.data.rendering import Renderer, Tokens
from tutelage.errors import Problem, TutelageError
from tutelage.formats import Continuation, Conversation, Prompted, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tutelage.engine.context import StageContext
    from tutelage.recipe import Data


@dataclass
class Prompts:
    """Prompts as records and as tokens. For the plan of steps, each counts 1."""

    records: list[Prompted]
    ids: list[list[int]]
    places: list[str]

    def __post_init__(self) -> None:
        self.lengths: NDArray[np.int64] = np.ones(len(self.ids), dtype=np.int64)
        self.weights = self.lengths

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tokens:
        ids = np.array(self.ids[index], dtype=np.int32)
        return Tokens(ids, np.zeros(len(ids), dtype=bool))

    def place(self, index: int) -> str:
        """Where a prompt comes from, for messages."""
        return self.places[index]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids), default=0)

    def part(self, indices: Sequence[int] | NDArray[np.int64]) -> Prompts:
        """Some of the prompts."""
        chosen = [int(index) for index in indices]
        return Prompts(
            [self.records[index] for index in chosen],
            [self.ids[index] for index in chosen],
            [self.places[index] for index in chosen],
        )


def prompted(record: Record) -> Prompted:
    """What is to be answered in a record; the answer that it has becomes the reference answer.

    Raises:
        ValueError: with a sentence, when nothing is asked in it.
    """
    if isinstance(record, Prompted):
        return record
    if isinstance(record, Continuation):
        return Prompted(record.prompt, record.completion)
    assert isinstance(record, Conversation)
    turns = list(record.messages)
    answer = ""
    if turns and turns[-1].get("role") == "assistant":
        answer = str(turns.pop().get("content") or "")
    if not turns:
        raise ValueError("asks nothing: it has no turn before the assistant's")
    return Prompted(turns, answer)


def encode(records: list[tuple[str, Record]], tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, list[Problem]]:
    """The prompts of records, and what is wrong with those that can't be given to the model."""
    try:
        renderer = Renderer(tokenizer)
    except ValueError as error:
        return Prompts([], [], []), [Problem(place="tokenizer", wrong=str(error))]
    found = Prompts([], [], [])
    wrong = RowProblems()
    for place, record in records:
        try:
            asked = prompted(record)
            ids = renderer.prompted(asked.prompt)
            if not ids:
                raise ValueError("the prompt is empty")
        except ValueError as error:
            wrong.add(place, str(error))
            continue
        found.records.append(asked)
        found.ids.append(ids)
        found.places.append(place)
    return Prompts(found.records, found.ids, found.places), wrong.listed("data")


def room(window: int | None, max_length: int) -> int:
    """Tokens that a prompt and its answer may have together: what the model can see, and `trainer.max_length`."""
    return max_length if window is None else min(window, max_length)


def fitting(prompts: Prompts, room: int, answer: int, data: Data, place: str) -> tuple[Prompts, list[Problem]]:
    """The prompts that leave `answer` tokens of `room`; where more are lost than `data.allow_loss`, a problem.

    Args:
        place: of the stage, for messages.
    """
    limit = room - answer
    keep = [index for index, ids in enumerate(prompts.ids) if len(ids) <= limit]
    lost = len(prompts) - len(keep)
    if keep and (data.too_long == "drop" and lost <= data.allow_loss * len(prompts)):
        return prompts.part(keep), []
    if not lost:
        return prompts, [] if len(prompts) else [Problem(place=f"{place}.data", wrong="has no prompts")]
    longest = max(range(len(prompts)), key=lambda index: len(prompts.ids[index]))
    wrong = (
        f"{prompts.places[longest]} has {len(prompts.ids[longest]):,} tokens, which with max_new_tokens {answer:,} is "
        f"more than the {room:,} that the model and trainer.max_length allow ({lost:,} of {len(prompts):,} prompts)"
    )
    fix = "lower phase.max_new_tokens, shorten or leave out the prompts, or raise data.allow_loss to drop them"
    return prompts.part(keep), [Problem(place=f"{place}.data", wrong=wrong, fix=fix)]


def load_prompts(context: StageContext, model: PreTrainedModel, answer: int) -> tuple[Prompts, Prompts | None]:
    """A stage's prompts: those to learn from, and those held out.

    Raises:
        TutelageError: with every problem found in them.
    """
    data, settings = context.stage.data, context.stage.trainer
    assert data is not None
    place = f"stages.{context.stage.name}"
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    wide = room(None if window is None else window - context.adapter.tokens_added, settings.max_length)
    problems: list[Problem] = []
    found = []
    for source in ("", data.eval) if data.eval else ("",):
        prompts, wrong = encode(context.records(source), context.tokenizer)
        prompts, too_long = fitting(prompts, wide, answer, data, place)
        problems += [*wrong, *too_long]
        found.append(prompts)
    if problems:
        raise TutelageError(problems)
    if data.eval_split:
        if len(found[0]) < 2:
            fix = "give more prompts, or a file of its own as eval"
            raise TutelageError.at(f"{place}.data.eval_split", "a single prompt can't be split", fix)
        order = np.random.default_rng([settings.seed, 1]).permutation(len(found[0]))
        held = min(max(1, round(data.eval_split * len(order))), len(order) - 1)
        return found[0].part(np.sort(order[held:])), found[0].part(np.sort(order[:held]))
    return found[0], found[1] if data.eval else None
