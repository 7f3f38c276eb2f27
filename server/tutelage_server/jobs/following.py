"""Following a run: its own events become events of the job, each once; its progress is kept."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from tutelage.runs.folder import EVENTS
from tutelage_server.jobs.events import append_event
from tutelage_server.store.tables import Job

CHUNK = 256 * 1024
LONGEST = 1024 * 1024
"Bytes of an event; a longer one is left out."

_RENAMED = {"state": "run_state", "asked": "run_asked"}
"Kinds that a job's own events have."
_FIGURES = ("loss", "learning_rate", "lr", "tokens", "tokens_per_second", "seconds", "memory_gib")


class Read(msgspec.Struct, kw_only=True, frozen=True):
    """A piece of a run's events file."""

    offset: int
    "Where it began; the job's `run_offset` when it was read."
    end: int
    "Where the next piece begins."
    events: list[dict[str, Any]] = []


def read_events(run: Path, offset: int, folder: Path) -> Read | None:
    """The next whole lines of a run's events; None when there are none. A last line without its end waits.

    Args:
        folder: the job's; it is taken off paths, which are nobody's business.
    """
    try:
        with (run / EVENTS).open("rb") as file:
            file.seek(offset)
            data = file.read(CHUNK)
            while data and b"\n" not in data and len(data) < LONGEST and (more := file.read(CHUNK)):
                data += more
            end = data.rfind(b"\n") + 1
            if not end and len(data) >= LONGEST:
                return _skip_line(file, offset)
    except FileNotFoundError:
        return None
    if not end:
        return None
    prefix = str(folder).encode() + b"/"
    events = [event for line in data[:end].splitlines() if (event := _event(line.replace(prefix, b"")))]
    return Read(offset=offset, end=offset + end, events=events)


def ingest(session: Session, job: Job, read: Read) -> bool:
    """Append a piece's events to a locked job, unless somebody did so before; the offset moves with them."""
    if job.run_offset != read.offset:
        return False
    progress = dict(job.progress)
    for event in read.events:
        kind = str(event.pop("event"))[:40]
        _note_progress(progress, kind, event, job.attempt)
        append_event(session, job, _RENAMED.get(kind, kind), event)
    job.progress = progress
    job.run_offset = read.end
    return True


def saved_something(job: Job) -> bool:
    """Whether this attempt of a job saved anything that the next can go on from."""
    return bool(job.progress.get("saved_by") == job.attempt)


def _note_progress(progress: dict[str, Any], kind: str, event: dict[str, Any], attempt: int) -> None:
    if kind == "run_started":
        progress["stages"] = event.get("stages") or []
    elif kind == "stage_started":
        progress.update(stage=event.get("stage"), step=event.get("resumed_from") or 0, steps=event.get("steps"))
    elif kind == "step":
        progress.update(stage=event.get("stage"), step=event.get("step"), steps=event.get("steps"))
        progress["figures"] = {name: event[name] for name in _FIGURES if name in event}
        progress["expected_end"] = _expected_end(progress)
    elif kind == "stage_finished":
        done = [name for name in progress.get("done", []) if name != event.get("stage")]
        progress["done"] = [*done, event.get("stage")]
    if kind in ("checkpoint", "stage_finished"):
        progress["saved_by"] = attempt


def _expected_end(progress: dict[str, Any]) -> int | None:
    """When the run's last stage will have made its last step, at the pace of this one (unix time); None before."""
    step, steps, seconds = progress["step"], progress["steps"], progress["figures"].get("seconds")
    if progress["stage"] not in progress.get("stages", [])[-1:]:
        return None
    if not (isinstance(step, int) and isinstance(steps, int) and isinstance(seconds, int | float)):
        return None
    return int(time.time() + max(0, steps - step) * seconds)


def _event(line: bytes) -> dict[str, Any] | None:
    """A line's event, or None: core, too, passes over lines that were torn by a kill."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        event = _clean(msgspec.json.decode(line))
        if isinstance(event, dict) and "event" in event:
            return event
    return None


def _clean(value: Any) -> Any:
    """The value without zero characters, which PostgreSQL's JSON can't hold."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def _skip_line(file: Any, offset: int) -> Read | None:
    file.seek(offset)
    length = 0
    while piece := file.readline(CHUNK):
        length += len(piece)
        if piece.endswith(b"\n"):
            text = f"an event of {length:,} bytes was left out: it is too long"
            return Read(offset=offset, end=offset + length, events=[{"event": "notice", "text": text}])
    return None
