"""Sorts out what a stage made: what goes into its dataset, and what is only kept to be looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.constitution import Constitution, doubts, dump
from tutelage.runs.files import write_atomically

if TYPE_CHECKING:
    from tutelage.engine.context import StageContext

ALL = "all.jsonl"
"Beside the dataset: every row that was made, those that were left out too."

Row = dict[str, Any]


def is_first_process() -> bool:
    """Whether this process is the one that writes what all have made."""
    return os.environ.get("RANK", "0") == "0"


def tell(context: StageContext, text: str) -> None:
    """Say something once, however many processes have it to say."""
    if is_first_process():
        context.emit("notice", text=text)


def tell_doubts(context: StageContext, constitution: Constitution) -> None:
    """Tell of principles that seem to repeat or contradict each other."""
    for doubt in doubts(constitution):
        if doubt.kind != "unasked":
            tell(context, f"constitution {constitution.name}: {doubt.problem}")


def sort_out(path: Path, keep: Callable[[Row], bool], constitution: Constitution) -> tuple[list[Row], list[Row]]:
    """Leave in a dataset's file what is to be kept; beside it, write every row, and the constitution they follow.

    Returns:
        the rows that were kept, and those that were not.
    """
    whole = path.read_bytes()
    write_atomically(path.with_name(ALL), whole)
    write_atomically(path.with_name("constitution.yaml"), dump(constitution))
    kept: list[Row] = []
    left: list[Row] = []
    for line in whole.splitlines():
        row = msgspec.json.decode(line)
        (kept if keep(row) else left).append(row)
    write_atomically(path, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))
    return kept, left
