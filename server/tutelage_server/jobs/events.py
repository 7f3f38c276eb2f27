"""A job's events: numbered from 1 without a gap, written in the transaction of what they tell."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage_server.store.tables import Event, Job, now


def append_event(session: Session, job: Job, kind: str, data: dict[str, Any]) -> None:
    """Add the next event of a job; `job` is locked by the caller's transaction (`Store.writing`, `lock_job`)."""
    job.events += 1
    job.updated_at = now()
    session.add(Event(job_id=job.id, number=job.events, at=job.updated_at, kind=kind, data=data))


def events_after(session: Session, job_id: str, number: int, limit: int = 500) -> list[Event]:
    """The events of a job that come after `number`, oldest first."""
    found = select(Event).where(Event.job_id == job_id, Event.number > number).order_by(Event.number).limit(limit)
    return list(session.scalars(found))
