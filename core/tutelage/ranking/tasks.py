"""Which questions each person gets: prompts with their answers, blinded, in an order of their own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage.formats import Prompt
from tutelage.ranking.orders import MOST_ANSWERS
from tutelage.runs.files import write_atomically

NAME = re.compile(r"^[^\W_][\w.@+ -]{0,99}$")
"What a person may be called."


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A question: order these answers to this prompt."""

    id: str
    prompt: Prompt
    answers: list[str]
    made_by: list[Any] = []
    "Which model gave each answer; never shown to those who rank."
    gold: list[float] | None = None
    "The ranks, where they are known to be right: then it asks how careful a person is."


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All questions of a stage, and who is to answer them."""

    tasks: list[Task]
    people: list[str] = []
    "Who may rank; empty: whoever comes first, up to `seats` people."
    seats: int = 1
    overlap: int = 1
    "How many people get each question."
    seed: int = 0
    gold_share: float = 0.1
    "How much of what a person gets has known answers."
    enough: float = 1.0
    "The share of all judgements asked for after which the run goes on."
    exclude: list[str] = []
    "People whose judgements don't count."
    simulated: str = ""
    "What ranks instead of people, if anything does."

    @property
    def asked(self) -> int:
        """Judgements asked for, without those of known answers."""
        return self.overlap * sum(task.gold is None for task in self.tasks)

    @property
    def wanted(self) -> int:
        """Judgements after which the run goes on."""
        return ceil(self.enough * self.asked - 1e-9)


def make_tasks(rows: Iterable[tuple[str, Prompt, Any, Any]], notes: list[str]) -> list[Task]:
    """Questions of rows (place, prompt, answers, made_by). Equal answers are shown once, equal questions asked once.

    What was left out is told in `notes`.

    Raises:
        TutelageError: with every row whose answers can't be ranked.
    """
    problems: list[Problem] = []
    found: dict[str, Task] = {}
    alone = twice = 0
    for place, prompt, answers, made_by in rows:
        if wrong := _not_answers(answers):
            problems.append(Problem(place=place, wrong=wrong, fix="the phase comparisons makes such rows"))
            continue
        kept = {answer: at for at, answer in reversed(list(enumerate(answers)))}
        order = sorted(kept.values())
        if len(order) < 2:
            alone += 1
            continue
        different = [answers[at] for at in order]
        makers = [made_by[at] for at in order] if isinstance(made_by, list) and len(made_by) == len(answers) else []
        task = Task(id=task_id(prompt, different), prompt=prompt, answers=different, made_by=makers)
        twice += task.id in found
        found.setdefault(task.id, task)
    if problems:
        raise TutelageError(problems)
    if alone:
        notes.append(f"{alone} prompts have no two different answers, so there is nothing to rank; they are left out")
    if twice:
        notes.append(f"{twice} rows ask what another row asks; they are left out")
    return list(found.values())


def task_id(prompt: Prompt, answers: list[str]) -> str:
    """A name that tells nothing but is the same for the same question (BLAKE2b, 64 bits, hexadecimal)."""
    text = json.dumps([prompt, answers], ensure_ascii=True, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _not_answers(answers: Any) -> str:
    if not isinstance(answers, list):
        return "has no list of answers to rank"
    for number, answer in enumerate(answers, 1):
        if not isinstance(answer, str) or not answer.strip():
            return f"answer {number} is {'empty' if isinstance(answer, str) else 'no text'}"
    if len(answers) > MOST_ANSWERS:
        return f"has {len(answers)} answers, and people can order at most {MOST_ANSWERS}"
    return "" if answers else "has no answers"


def assignments(plan: Plan) -> list[list[Task]]:
    """The questions of each seat: each goes to `overlap` seats, those that have fewest so far, else by lot.

    So everybody gets as many, give or take one, and who shares questions with whom is mixed. Questions with known
    answers are added for everybody, drawn for each.
    """
    random = Random(f"assign {plan.seed}")
    tasks = [task for task in plan.tasks if task.gold is None]
    known = [task for task in plan.tasks if task.gold is not None]
    random.shuffle(tasks)
    lots: list[list[Task]] = [[] for _ in range(plan.seats)]
    for task in tasks:
        for seat in sorted(range(plan.seats), key=lambda seat: (len(lots[seat]), random.random()))[: plan.overlap]:
            lots[seat].append(task)
    for lot in lots:
        share = ceil(len(lot) * plan.gold_share / (1 - plan.gold_share)) if known else 0
        lot += random.sample(known, min(share, len(known)))
        random.shuffle(lot)
    return lots


def shown_order(plan: Plan, person: str, task: Task) -> list[int]:
    """The order in which a person sees the answers: the same whenever asked, another for every person and question."""
    order = list(range(len(task.answers)))
    Random(f"show {plan.seed} {person} {task.id}").shuffle(order)
    return order


def save(plan: Plan, path: Path) -> None:
    """Write a plan whole or not at all."""
    write_atomically(path, msgspec.json.encode(plan))


def load(path: Path) -> Plan:
    """Read a plan.

    Raises:
        TutelageError: when it is not there, or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise TutelageError.at(str(path), f"can't be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        fix = "tutelage resume writes it anew; the judgements are kept"
        raise TutelageError.at(str(path), f"is damaged: {error}", fix) from None
