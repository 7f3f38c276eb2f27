"""The rows of the bench: conversations that are read, and what other works make of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo" / "train.jsonl"
TEXT = ROOT / "examples" / "data" / "general_text.txt"
Rows = list[list[dict[str, str]]]
Row = TypeVar("Row")


def read_rows(file: Path) -> Rows:
    """Conversations from JSONL with `messages`, or from a JSON list in Alpaca's format."""
    if file.suffix == ".jsonl":
        return [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    made = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        asked = "\n\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        made.append([{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}])
    return made


def first_tokens(rows: Sequence[Row], counts: Sequence[int], tokens: int) -> list[Row]:
    """The first rows that have so many tokens in all, beginning again at the first where they do not suffice."""
    taken: list[Row] = []
    while tokens > 0:
        at = len(taken) % len(rows)
        taken.append(rows[at])
        tokens -= counts[at]
    return taken


def packs(counts: Sequence[int], size: int) -> int:
    """How many packed rows of `size` tokens examples fill, longest first, each where the least room is left."""
    rooms: list[int] = []
    for count in sorted((min(count, size) for count in counts), reverse=True):
        fitting = [at for at, room in enumerate(rooms) if room >= count]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= count
        else:
            rooms.append(size - count)
    return len(rooms)


def preferences(rows: Rows) -> list[dict[str, Any]]:
    """As many pairs as rows: each one's own answer is preferred to the next one that is another."""
    answers = [row[-1] for row in rows]
    made = []
    for at, row in enumerate(rows):
        others = (answer for answer in answers[at + 1 :] + answers[:at] if answer != row[-1])
        if (other := next(others, None)) is not None:
            made.append({"prompt": row[:-1], "chosen": row[-1:], "rejected": [other]})
    return made


def prompts(rows: Rows) -> list[dict[str, Any]]:
    """The rows without their last turn."""
    return [{"prompt": row[:-1]} for row in rows]


def alpaca_sized(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Rows of about the size of Alpaca-GPT4's, some 190 tokens, of words as frequent as in English text."""
    words = TEXT.read_text(encoding="utf-8").split()
    draw = random.Random(seed)
    for _ in range(count):
        asked = " ".join(draw.choices(words, k=draw.randint(6, 20)))
        answer = " ".join(draw.choices(words, k=min(420, max(5, int(draw.lognormvariate(4.4, 0.75))))))
        yield {"instruction": asked, "input": "", "output": answer}


def write(file: Path, rows: Any) -> Path:
    """Rows as JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return file
