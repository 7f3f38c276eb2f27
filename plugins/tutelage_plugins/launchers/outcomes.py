"""What an attempt's folder says of its end, whichever launcher started it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from tutelage.launcher import Status
from tutelage.runs.attempt import CLOSED, last_outcome
from tutelage_plugins.launchers.keeper import ENDED, LOG, Ended

T = TypeVar("T")

KILLED, STOPPED = 137, 143


def ended(folder: Path, where: str) -> Status:
    """The status of an attempt none of whose processes lives."""
    told = last_outcome(folder)
    last = _read(folder / ENDED, Ended)
    if told is not None:
        why: Literal["time-limit", "killed", "exited"] = "killed" if told.signal else "exited"
        why = "time-limit" if told.why == "time-limit" else why
        return Status(state="ended", why=why, exit_code=told.exit_code, where=where, detail=told.reason)
    if last is not None and last.why != "exited":
        return Status(state="ended", why=last.why, exit_code=last.exit_code, where=where, detail=last.detail)
    if (folder / CLOSED).exists() and (last is None or last.exit_code == 0):
        return Status(state="ended", why="cancelled", exit_code=STOPPED, where=where, detail="stopped before it began")
    if last is not None:
        return Status(state="ended", why="exited", exit_code=last.exit_code, where=where, detail=last_words(folder))
    return Status(state="ended", why="killed", exit_code=KILLED, where=where, detail="it was killed")


def _read(path: Path, kind: type[T]) -> T | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=kind)
    return None


def last_words(folder: Path) -> str:
    """The last line that an attempt's command printed; '' when it printed none."""
    with contextlib.suppress(OSError):
        lines = (folder / LOG).read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")[:500]
    return ""
