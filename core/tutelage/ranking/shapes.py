"""Questions and rankings in the shapes of other tools: plain JSONL, Argilla's records, Label Studio's tasks.

A shape is a pair of functions: one makes rows of a desk's questions, the other reads judgements out of a row and raises
ValueError with a sentence (`wrong; fix`) where it can't.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec

from tutelage.formats import Prompt
from tutelage.ranking.desk import Desk
from tutelage.ranking.judgements import Judgement, Kind
from tutelage.ranking.tasks import Task, shown_order

Row = dict[str, Any]

QUESTION = "ranking"
"What the question is called in Argilla."


class Given(msgspec.Struct, kw_only=True):
    """A judgement as a tool has it: `order` holds each answer's text with its rank, in the order of the tool."""

    task: str
    person: str
    kind: Kind
    order: list[tuple[str, float]] = []
    at: str = ""
    seconds: float | None = None
    comment: str = ""


def text_of(prompt: Prompt) -> str:
    """A prompt as people read it; the turns of a conversation with who says them."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return str(prompt[0].get("content", ""))
    return "\n\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)


def _questions(desk: Desk, person: str) -> Iterator[tuple[Task, list[int]]]:
    said = desk.said()
    if person:
        tasks = desk.pending(person)
    else:
        tasks = [task for task in desk.plan.tasks if len(said.get(task.id, {})) < desk.plan.overlap]
        Random(f"export {desk.plan.seed}").shuffle(tasks)  # known answers would stand out at the end
    for task in tasks:
        yield task, shown_order(desk.plan, person, task)


def _plain_rows(desk: Desk, person: str) -> Iterator[Row]:
    """`ranks` are those of `answers`, 1 best; null where nobody has judged. `bad` or `skip` may be true instead."""
    for task_id, answers in desk.said().items():
        for name, given in answers.items():
            if person in ("", name):
                yield _plain_judgement(desk.tasks[task_id], given)
    for task, order in _questions(desk, person):
        shown = [task.answers[at] for at in order]
        yield {"id": task.id, "person": person, "prompt": task.prompt, "answers": shown, "ranks": None}


def _plain_judgement(task: Task, given: Judgement) -> Row:
    order = given.shown or range(len(task.answers))
    ranked = given.kind == "ranking"
    row: Row = {
        "id": task.id,
        "person": given.person,
        "prompt": task.prompt,
        "answers": [task.answers[at] for at in order],
        "ranks": [given.ranks[at] for at in order] if ranked else None,
    }
    told = {"at": given.at, "seconds": given.seconds, "comment": given.comment, "by": given.by}
    return row | ({} if ranked else {given.kind: True}) | {key: value for key, value in told.items() if value}


_FLAGS: tuple[Kind, ...] = ("bad", "skip")


def _from_plain(row: Row) -> Iterator[Given]:
    ranks, answers = row.get("ranks"), row.get("answers")
    flags: list[Kind] = [kind for kind in _FLAGS if row.get(kind)]
    if ranks is None and not flags:
        return
    if len(flags) + (ranks is not None) > 1:
        raise ValueError("has more than one of ranks, bad and skip; keep one")
    given = Given(
        task=_text(row, "id"),
        person=_text(row, "person", wanted=False),
        kind=flags[0] if flags else "ranking",
        at=_text(row, "at", wanted=False),
        seconds=row["seconds"] if isinstance(row.get("seconds"), int | float) else None,
        comment=_text(row, "comment", wanted=False),
    )
    if not flags:
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError("answers is not a list of texts; leave them as they were exported")
        given.order = list(zip(answers, _ranks(ranks, len(answers)), strict=True))
    yield given


def _ranks(ranks: Any, count: int) -> list[float]:
    if not isinstance(ranks, list):
        raise ValueError("ranks is not a list of numbers")
    for number, rank in enumerate(ranks, 1):
        if rank is None:
            raise ValueError(f"answer {number} has no rank; every answer needs one")
        if isinstance(rank, bool) or not isinstance(rank, int | float) or not math.isfinite(rank):
            raise ValueError(f"the rank of answer {number} is {rank!r}, not a number")
    if len(ranks) != count:
        raise ValueError(f"ranks has {len(ranks)} and answers {count}; every answer needs one")
    return [float(rank) for rank in ranks]


def _text(row: Row, field: str, wanted: bool = True) -> str:
    value = row.get(field)
    if value is None and not wanted:
        return ""
    if not isinstance(value, str) or (wanted and not value):
        raise ValueError(f"{field} is {'missing' if value is None else 'no text'}")
    return value


def _argilla_rows(desk: Desk, person: str) -> Iterator[Row]:
    """What `Record.to_dict` of the argilla package (2.x) writes: the fields prompt, answer-1, answer-2 …"""
    for task, order in _questions(desk, person):
        answers = {f"answer-{number}": task.answers[at] for number, at in enumerate(order, 1)}
        yield {
            "id": task.id,
            "fields": {"prompt": text_of(task.prompt), **answers},
            "metadata": {},
            "suggestions": {},
            "responses": {},
            "vectors": {},
        }


def _from_argilla(row: Row) -> Iterator[Given]:
    """Responses of either shape: by question (the package), or by user with all their questions (the server)."""
    fields, responses = row.get("fields"), row.get("responses") or {}
    if not isinstance(fields, dict):
        raise ValueError("fields is missing; is it a record of Argilla?")
    if isinstance(responses, dict):
        told = responses.get(QUESTION) or []
    else:
        told = [_flat(response) for response in _list(responses, "responses")]
    for response in _list(told, f"responses.{QUESTION}"):
        status = response.get("status")
        if status == "draft":
            continue
        given = Given(
            task=str(row.get("id") or row.get("external_id") or ""),
            person=str(response.get("user_id") or ""),
            kind="skip" if status == "discarded" else "ranking",
        )
        if given.kind == "ranking":
            values = response.get("value")
            if not isinstance(values, list):
                raise ValueError(f"the response to {QUESTION} is no list")
            given.order = [_argilla_rank(fields, value, at) for at, value in enumerate(values, 1)]
        yield given


def _flat(response: Row) -> Row:
    answer = _inside(response, "values", QUESTION)
    return {**response, **(answer if isinstance(answer, dict) else {})}


def _argilla_rank(fields: Row, value: Any, place: int) -> tuple[str, float]:
    """A value is a field's name, best first, or such a name with its rank."""
    name, rank = (value.get("value"), value.get("rank") or place) if isinstance(value, dict) else (value, place)
    if not isinstance(fields.get(str(name)), str):
        raise ValueError(f"ranks {name!r}, which is no field of the record")
    return fields[str(name)], _ranks([rank], 1)[0]


def _inside(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _list(value: Any, field: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{field} is not a list of objects")
    return value


def _label_studio_rows(desk: Desk, person: str) -> Iterator[Row]:
    """Tasks for `LABEL_STUDIO_CONFIG`: a List of items with a Ranker."""
    for task, order in _questions(desk, person):
        items = [
            {"id": f"answer-{number}", "title": f"Answer {number}", "body": task.answers[at]}
            for number, at in enumerate(order, 1)
        ]
        yield {"data": {"task": task.id, "prompt": text_of(task.prompt), "items": items}}


LABEL_STUDIO_CONFIG = (
    '<View><Text name="prompt" value="$prompt"/>'
    '<List name="answers" value="$items" title="Best at the top"/><Ranker name="rank" toName="answers"/></View>'
)


def _from_label_studio(row: Row) -> Iterator[Given]:
    data = row.get("data")
    if not isinstance(data, dict):
        raise ValueError("data is missing; is it a task of Label Studio?")
    items = _list(data.get("items"), "data.items")
    bodies = {str(item.get("id")): item["body"] for item in items if isinstance(item.get("body"), str)}
    for annotation in _list(row.get("annotations") or [], "annotations"):
        who = annotation.get("completed_by")
        lead = annotation.get("lead_time")
        cancelled = bool(annotation.get("was_cancelled"))
        given = Given(
            task=str(data.get("task") or ""),
            person=str((who.get("email") if isinstance(who, dict) else who) or ""),
            kind="skip" if cancelled else "ranking",
            at=str(annotation.get("created_at") or ""),
            seconds=float(lead) if isinstance(lead, int | float) else None,
        )
        if not cancelled:
            ids = _ranked_ids(annotation)
            if unknown := [name for name in ids if name not in bodies]:
                raise ValueError(f"ranks {unknown[0]!r}, which is none of data.items")
            given.order = [(bodies[name], float(place)) for place, name in enumerate(ids, 1)]
        yield given


def _ranked_ids(annotation: Row) -> list[str]:
    for result in _list(annotation.get("result") or [], "annotations.result"):
        if result.get("type") == "ranker":
            columns = _inside(result, "value", "ranker")
            lists = list(columns.values()) if isinstance(columns, dict) else []
            if len(lists) == 1 and isinstance(lists[0], list):
                return [str(name) for name in lists[0]]
            raise ValueError("its Ranker has several columns; rank in one List without Buckets")
    raise ValueError("an annotation has no result of a Ranker; submit it with an order, or cancel it")


SHAPES: dict[str, tuple[Callable[[Desk, str], Iterator[Row]], Callable[[Row], Iterator[Given]]]] = {
    "jsonl": (_plain_rows, _from_plain),
    "argilla": (_argilla_rows, _from_argilla),
    "label-studio": (_label_studio_rows, _from_label_studio),
}
KINDS = tuple(SHAPES)
