"""How an attempt ended, what becomes of its job, and what it cost."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.launcher import Status
from tutelage.runs.attempt import LOG, OUTCOME, Outcome
from tutelage.runs.folder import RECORD
from tutelage_server.accounts.limits import limits_of
from tutelage_server.accounts.usage import add_usage
from tutelage_server.jobs.launching import resources_of
from tutelage_server.jobs.scheduling import decayed, weight
from tutelage_server.jobs.states import (
    CANCELLED,
    CANCELLING,
    FAILED,
    PAUSED,
    PAUSING,
    QUEUED,
    SUCCEEDED,
    WAITING,
    transition,
)
from tutelage_server.settings import Settings
from tutelage_server.store.tables import Event, Job, Tenant, now

LONGEST_BACKOFF = 600.0
_BY_THE_CLUSTER = {
    "node-lost": "its node was lost",
    "preempted": "the cluster preempted it",
    "memory-limit": "it used more memory than it may (ask for more with resources.memory_gib, or train with smaller "
    "micro-batches)",
    "killed": "its process was killed",
}


class Verdict(msgspec.Struct, kw_only=True, frozen=True):
    """What becomes of a job whose attempt ended."""

    state: str
    reason: str = ""
    by: str = "run"
    retry: bool = False
    "Whether it begins anew by the machine's fault, which is counted."


def outcome_of_record(folder: Path, run: Path) -> Outcome | None:
    """The outcome of an attempt that was killed after its run had ended, by the run's own record."""
    began = _began(folder)
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        if began is not None and (run / RECORD).stat().st_mtime >= began:
            record = msgspec.json.decode((run / RECORD).read_bytes())
            codes = {"succeeded": 0, "failed": 1, "waiting": 3}
            if isinstance(record, dict) and (code := codes.get(record.get("state", ""))) is not None:
                return Outcome(exit_code=code, state=record["state"], reason=str(record.get("reason", "")))
    return None


def is_final(outcome: Outcome, wanted: str) -> bool:
    """Whether an outcome says all; of others the cluster may know why (a lost node, a person's scancel)."""
    return outcome.exit_code in (0, 2, 3) or bool(outcome.why) or wanted != "run"


def judge(job: Job, outcome: Outcome | None, status: Status, saved: bool) -> Verdict:
    """Decide what becomes of a job by how its attempt ended.

    Args:
        outcome: what the attempt said; it counts for more than what the cluster says. None: it was killed.
        saved: whether this attempt saved anything that the next can go on from.
    """
    code = None if outcome is None else outcome.exit_code
    reason = outcome.reason if outcome else ""
    cancelling, pausing = (
        job.wanted == "cancel" or job.state == CANCELLING,
        job.wanted == "pause" or job.state == PAUSING,
    )
    if code == 0:
        return Verdict(state=SUCCEEDED)
    if cancelling:
        return Verdict(state=CANCELLED, reason=f"cancelled; {_where_it_is(saved)}", by="request")
    if code == 3:
        return Verdict(state=WAITING, reason=reason or "people must act first; then resume it")
    if code == 2:
        return Verdict(state=FAILED, reason=f"{reason or 'something is to be mended'}; mend it and submit it again")
    by_the_machine = status.why in ("node-lost", "preempted", "memory-limit")
    began = outcome is not None and outcome.state == "failed"
    if code == 1 and not by_the_machine and (began or not pausing):
        return Verdict(state=FAILED, reason=reason or "the run failed and said nothing; see the log")
    if pausing and job.wanted == "run":
        return Verdict(state=QUEUED, reason="it was asked to go on while it was pausing", by="request")
    if pausing:
        return Verdict(state=PAUSED, reason="paused; resume it when you like", by="request")
    if status.why == "cancelled":
        reason = f"cancelled at the cluster, not here{_said(status)}; retry it if that was not meant"
        return Verdict(state=CANCELLED, reason=reason, by="launcher")
    if status.why == "time-limit" or (outcome and outcome.why == "time-limit"):
        return _at_the_time_limit(job, saved)
    return _by_the_machine(job, _what_happened(outcome, status))


def apply(session: Session, job: Job, verdict: Verdict, backoff: float) -> None:
    """Move a locked job to where a verdict puts it.

    Args:
        backoff: seconds until the first retry may start; every further one waits twice as long, at most ten minutes.
    """
    state, reason, by = verdict.state, verdict.reason, verdict.by
    if by == "request":
        by = _who_asked(session, job)
    fields: dict[str, Any] = {"handle": "", "lease": "", "leased_until": None, "stop_asked_at": None}
    if state == QUEUED and verdict.retry:
        fields["retries"] = job.retries + 1
        seconds = min(LONGEST_BACKOFF, backoff * 2**job.retries)
        fields["not_before"] = now() + timedelta(seconds=seconds)
    if state in (PAUSED, WAITING, FAILED) and job.wanted == "pause":
        fields["wanted"] = "run"
    if (state, job.state) == (PAUSED, PAUSING) or state != PAUSED:
        if state == QUEUED and job.state == PAUSING:  # it was asked to go on while it was pausing
            transition(session, job, PAUSED, by=by)
        transition(session, job, state, reason=reason, by=by, **fields)
        return
    transition(session, job, PAUSING, by=by)
    transition(session, job, PAUSED, reason=reason, by=by, **fields)


def _who_asked(session: Session, job: Job) -> str:
    """Who asked last that a job pause, end or go on."""
    asked = select(Event.data).where(Event.job_id == job.id, Event.kind == "asked")
    data = session.scalars(asked.order_by(Event.number.desc()).limit(1)).first()
    return str(data["by"]) if data else "request"


def afford(session: Session, job: Job, verdict: Verdict, settings: Settings) -> Verdict:
    """End a job that is to go on by itself where that might cost more than it may: what was promised when it was taken
    in holds for all of its attempts together. Called after `account`."""
    hourly = settings.hourly_usd
    limits = [limits_of(session, settings.limits, job.tenant_id).job_usd, (job.estimate or {}).get("limit_usd")]
    most = min((limit for limit in limits if limit is not None), default=None)
    if most is None or hourly is None or verdict.state != QUEUED or verdict.by == "request":
        return verdict
    resources = resources_of(job)
    next_usd = 0.0 if verdict.retry else (resources.minutes or 0) / 60 * weight(resources) * hourly
    if job.spent_usd + next_usd <= most:
        return verdict
    what = verdict.reason.partition(";")[0]
    cost = f"it has cost {job.spent_usd:.2f} USD, and going on might cost more than the {most:.2f} that it may"
    return Verdict(state=FAILED, reason=f"{what}; {cost}; retry it to go on from its checkpoint", by="launcher")


def account(session: Session, job: Job, folder: Path, hourly_usd: float | None) -> None:
    """Add what an ended attempt used to its job, its key's usage of the month and its tenant's share."""
    resources = resources_of(job)
    seconds = _seconds(folder)
    device_seconds = seconds * weight(resources)
    usd = device_seconds / 3600 * (hourly_usd or 0.0)
    job.spent_usd += usd
    gpu_seconds = seconds * resources.nodes * resources.gpus
    tenant = session.get_one(Tenant, job.tenant_id, with_for_update=True)  # before its usage, as who submits does
    add_usage(session, job.tenant_id, job.key_id, gpu_seconds=gpu_seconds, usd=usd)
    clock = now()
    tenant.used = decayed(tenant.used, tenant.used_at, clock) + device_seconds
    tenant.used_at = clock


def _began(folder: Path) -> float | None:
    """When an attempt first claimed its folder, by the clock of the disk; None when it never began."""
    return min((file.stat().st_mtime for file in folder.glob("claimed-*.json")), default=None)


def _seconds(folder: Path) -> float:
    """How long an attempt took, by its files: a server that was down meanwhile counts no more than one that was up."""
    began = _began(folder)
    if began is None:
        return 0.0
    ends = [file.stat().st_mtime for name in (OUTCOME, LOG) if (file := folder / name).exists()]
    return max(0.0, max(ends, default=time.time()) - began)


def _at_the_time_limit(job: Job, saved: bool) -> Verdict:
    minutes = resources_of(job).minutes
    limit = f"its time limit of {minutes} minutes" if minutes else "the cluster's time limit"
    if saved:
        return Verdict(state=QUEUED, reason=f"{limit} was reached; it goes on from its checkpoint", by="launcher")
    fix = "ask for more time (resources.minutes) or save more often (trainer.checkpoint_every)"
    return Verdict(state=FAILED, reason=f"{limit} was reached before it saved anything; {fix}", by="launcher")


def _by_the_machine(job: Job, what: str) -> Verdict:
    if job.retries >= job.max_retries:
        times = f"{job.retries + 1} attempts ended so" if job.retries else "and it may not be retried (max_retries)"
        reason = f"{what}; {times}; see the log, and retry it when the machine is well"
        return Verdict(state=FAILED, reason=reason, by="launcher")
    return Verdict(state=QUEUED, reason=f"{what}; it goes on from its checkpoint", by="launcher", retry=True)


def _what_happened(outcome: Outcome | None, status: Status) -> str:
    if status.why in _BY_THE_CLUSTER:
        what = _BY_THE_CLUSTER[status.why]
    elif outcome and outcome.exit_code in (130, 143):
        what = "somebody else than this service stopped it (SIGTERM), as a machine does that shuts down"
    elif outcome and outcome.signal == 9:
        what = "its process was killed (signal 9), as the kernel does when memory runs out"
    elif outcome:
        what = f"its process ended with code {outcome.exit_code}" + (f" ({outcome.reason})" if outcome.reason else "")
    elif status.state == "absent":
        what = "the cluster knows nothing of it"
    else:
        what = "its processes ended without a word, as they do when the machine fails or memory runs out"
    return what + _said(status)


def _said(status: Status) -> str:
    return f" ({status.detail})" if status.detail else ""


def _where_it_is(saved: bool) -> str:
    return "its last checkpoint is among its artifacts" if saved else "nothing was saved"
