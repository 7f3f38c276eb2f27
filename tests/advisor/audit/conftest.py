"""Sound chat rows made of random English, to plant defects in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

_WHO = (
    "the gardener",
    "our neighbour",
    "a sailor",
    "the committee",
    "this village",
    "the orchestra",
    "a botanist",
    "the mayor",
    "my cousin",
    "the crew",
)
_DID = (
    "repaired",
    "painted",
    "discovered",
    "described",
    "measured",
    "sold",
    "borrowed",
    "carried",
    "photographed",
    "forgot",
    "rebuilt",
    "inspected",
)
_KIND = (
    "old",
    "narrow",
    "silver",
    "wooden",
    "noisy",
    "gentle",
    "crooked",
    "frozen",
    "yellow",
    "borrowed",
    "quiet",
    "enormous",
    "fragile",
    "distant",
)
_WHAT = (
    "bridge",
    "violin",
    "lantern",
    "orchard",
    "harbour",
    "kettle",
    "telescope",
    "staircase",
    "meadow",
    "clock",
    "canoe",
    "archive",
    "window",
    "garden",
)
_WHERE = (
    "behind the station",
    "near the river",
    "under a maple",
    "across the valley",
    "beside the museum",
    "along the coast",
)
_WHEN = (
    "last winter",
    "before breakfast",
    "during the storm",
    "after the concert",
    "every autumn",
    "on a foggy evening",
)
_WHY = (
    "because the weather changed",
    "so that everyone could rest",
    "although nobody had asked",
    "while the children slept",
)


def sentence(random: Random) -> str:
    words = [
        random.choice(_WHO),
        random.choice(_DID),
        "the",
        random.choice(_KIND),
        random.choice(_WHAT),
        random.choice(_WHERE),
        random.choice(_WHEN),
        random.choice(_WHY),
    ]
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "license": "cc0-1.0", **more}


def sound_row(random: Random) -> dict[str, Any]:
    question = f"{sentence(random)} {sentence(random)} What follows from that?"
    return chat(question, " ".join(sentence(random) for _ in range(random.randint(3, 5))))


@pytest.fixture(scope="session")
def sound() -> Callable[[int, int], list[dict[str, Any]]]:
    """Makes `count` sound rows from a seed."""

    def make(count: int, seed: int = 0) -> list[dict[str, Any]]:
        random = Random(seed)
        return [sound_row(random) for _ in range(count)]

    return make


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (mappings, or lines as they are) as JSON Lines."""

    def write(rows: list[dict[str, Any] | str], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return write
