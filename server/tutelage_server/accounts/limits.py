"""Rates of keys, and quotas of tenants."""

from __future__ import annotations

import math
import threading
import time
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tutelage_server.accounts.caller import Caller
from tutelage_server.jobs.states import TERMINAL
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Limits
from tutelage_server.store.tables import Job, StoredFile, Tenant, Usage, now


class Rates:
    """A token bucket for every key: it holds a minute's requests and fills as time goes by.

    Buckets belong to keys, so no header that a client sends moves it to another.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: Caller) -> None:
        """Take one request.

        Raises:
            Refused: 429 with Retry-After when the bucket is empty.
        """
        most = caller.requests_per_minute or self._limits.requests_per_minute
        at = time.monotonic()
        with self._lock:
            left, before = self._buckets.get(caller.key_id, (float(most), at))
            left = min(most, left + (at - before) * most / 60)
            if left >= 1:
                self._buckets[caller.key_id] = (left - 1, at)
                return
            self._buckets[caller.key_id] = (left, at)
        wait = math.ceil((1 - left) * 60 / most)
        fix = f"wait {wait} s, or ask an admin for a higher rate"
        wrong = f"has used its {most} requests a minute"
        raise refused(429, "the key", wrong, fix, code="rate_limit_exceeded", headers={"retry-after": str(wait)})


def limits_of(session: Session, limits: Limits, tenant_id: str) -> Limits:
    """What a tenant may use: the server's limits (`settings.limits`), with those that were set for the tenant."""
    own: dict[str, Any] = session.scalars(select(Tenant.limits).where(Tenant.id == tenant_id)).one()
    return msgspec.structs.replace(limits, **own)


def month_of(at: datetime | None = None) -> str:
    """The month of a time, as usage is kept by: `2026-11`."""
    return f"{at or now():%Y-%m}"


def active_jobs(session: Session, tenant_id: str) -> int:
    """How many jobs of a tenant have not ended."""
    found = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.state.not_in(TERMINAL))
    return session.scalar(found) or 0


def stored_bytes(session: Session, tenant_id: str) -> int:
    """How much a tenant's files take, with what is promised of uploads that go on."""
    found = select(func.coalesce(func.sum(StoredFile.bytes), 0)).where(StoredFile.tenant_id == tenant_id)
    return int(session.scalar(found) or 0)


def spent_usd(session: Session, tenant_id: str, month: str | None = None) -> float:
    """What a tenant's jobs of a month cost, with the most that those which have not ended may cost."""
    ended = select(func.coalesce(func.sum(Usage.usd), 0.0)).where(
        Usage.tenant_id == tenant_id, Usage.month == (month or month_of())
    )
    promised = select(func.coalesce(func.sum(Job.usd), 0.0)).where(
        Job.tenant_id == tenant_id, Job.state.not_in(TERMINAL)
    )
    return float(session.scalar(ended) or 0.0) + float(session.scalar(promised) or 0.0)


def check_job_quota(session: Session, limits: Limits, tenant_id: str, usd: float | None, count: int = 1) -> None:
    """Refuse jobs that a tenant's quotas don't allow; called in the transaction that adds them.

    Args:
        limits: the server's.
        usd: the most that one of the jobs may cost; None when that is not known.
        count: how many jobs are to be added.
    Raises:
        Refused: 402 when they cost too much, 403 when too many are active.
    """
    mine = limits_of(session, limits, tenant_id)
    active = active_jobs(session, tenant_id)
    if active + count > mine.active_jobs:
        wrong = f"{active} of this tenant's jobs are queued or run, and {mine.active_jobs} may be"
        raise refused(403, "jobs", wrong, "wait until some have ended, or cancel some", code="too_many_jobs")
    if usd is None:
        return
    if mine.job_usd is not None and usd > mine.job_usd:
        raise _too_dear(f"may cost {usd:.2f} USD, and a job may cost {mine.job_usd:.2f}")
    spent = spent_usd(session, tenant_id)
    if mine.month_usd is not None and spent + usd * count > mine.month_usd:
        wrong = f"may cost {usd * count:.2f} USD, and of this month's {mine.month_usd:.2f} USD {spent:.2f} are used"
        raise _too_dear(f"{wrong} or promised")


def check_file_quota(session: Session, limits: Limits, tenant_id: str, size: int) -> None:
    """Refuse a file that is larger than allowed, or that a tenant has no room for.

    Raises:
        Refused: 413 or 403.
    """
    mine = limits_of(session, limits, tenant_id)
    if size > mine.file_bytes:
        raise refused(413, "the file", f"has {size} bytes, and a file may have {mine.file_bytes}", code="too_large")
    stored = stored_bytes(session, tenant_id)
    if stored + size > mine.stored_bytes:
        wrong = f"{stored} bytes are stored, and {mine.stored_bytes} may be"
        raise refused(403, "files", wrong, "delete files that are needed no more", code="storage_full")


def _too_dear(wrong: str) -> Refused:
    return refused(402, "the job", wrong, "make it smaller, or ask an admin for a larger budget", code="over_budget")
