"""The states of a job and the transitions between them: the only place where a job's state changes."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from tutelage_server.jobs.events import append_event
from tutelage_server.store.tables import Job, now

QUEUED, STARTING, RUNNING, WAITING = "queued", "starting", "running", "waiting"
PAUSING, PAUSED, CANCELLING = "pausing", "paused", "cancelling"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"

TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
ON_A_MACHINE = frozenset({STARTING, RUNNING, PAUSING, CANCELLING})
"States in which an attempt may hold devices."

ALLOWED: dict[str, frozenset[str]] = {
    QUEUED: frozenset({STARTING, PAUSED, FAILED, CANCELLED}),
    STARTING: frozenset({RUNNING, QUEUED, PAUSING, CANCELLING, WAITING, SUCCEEDED, FAILED, CANCELLED}),
    RUNNING: frozenset({QUEUED, WAITING, PAUSING, CANCELLING, SUCCEEDED, FAILED, CANCELLED}),
    WAITING: frozenset({QUEUED, PAUSED, CANCELLED, FAILED}),
    PAUSING: frozenset({PAUSED, CANCELLING, WAITING, SUCCEEDED, FAILED, CANCELLED}),
    PAUSED: frozenset({QUEUED, CANCELLED}),
    CANCELLING: frozenset({CANCELLED, SUCCEEDED, FAILED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}


class NotAllowed(Exception):
    """A job can't go from its state to another."""

    def __init__(self, job: str, before: str, after: str) -> None:
        super().__init__(f"{job} is {before} and can't become {after}")
        self.job, self.before, self.after = job, before, after


def transition(session: Session, job: Job, after: str, *, reason: str = "", by: str = "", **fields: Any) -> None:
    """Move a job to another state, with its event, in the caller's transaction.

    Args:
        reason: why, and what to do, as a sentence; kept on the job when the state is terminal, waiting or paused.
        by: who or what did it: `key:ID`, `scheduler`, `launcher`, `run`.
        fields: other columns to set at the same time.
    Raises:
        NotAllowed: when the state does not lead there; a terminal state leads nowhere.
    """
    before = job.state
    if after not in ALLOWED[before]:
        raise NotAllowed(job.id, before, after)
    job.state = after
    job.reason = reason
    job.ended_by = by if after in TERMINAL else ""
    if after == RUNNING and job.started_at is None:
        job.started_at = now()
    if after in TERMINAL:
        job.finished_at = now()
        job.usd = job.spent_usd
    if after not in ON_A_MACHINE:
        job.devices = []
    for name, value in fields.items():
        setattr(job, name, value)
    append_event(session, job, "state", {"from": before, "to": after, "reason": reason, "by": by})
