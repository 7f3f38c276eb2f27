"""How long work on files is shown to a person: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def reading_progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show on stderr how much of `size` bytes is done; yields the function that is told of more bytes."""
    if not sys.stderr.isatty():
        yield _lines(what, size)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=size or None)
        yield lambda count: progress.advance(task, count)


def _lines(what: str, size: int) -> Callable[[int], None]:
    started = shown = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown >= _SECONDS_BETWEEN_LINES:
            shown = now
            share = f"{done / size:.0%}" if size else f"{done / 1e6:,.0f} MB"
            print(f"{what}: {share} after {now - started:,.0f} s", file=sys.stderr, flush=True)

    return advance
