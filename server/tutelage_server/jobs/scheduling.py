"""The schedule: which queued jobs start now, and on which devices.

`plan` is a pure function of what is queued, what runs and what there is. Jobs of a higher priority come first; among
equals the tenant (then the key) that uses least now, then the one that used least of late; then the oldest. A job that
doesn't fit is passed over, so that it holds nobody up; but one that has waited for half an hour keeps those that come
after it on the same launcher from starting, so that small jobs don't starve a large one.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from tutelage.errors import TutelageError
from tutelage.launcher import Capacity, Launcher, Resources
from tutelage_server.jobs.states import (
    CANCELLED,
    FAILED,
    ON_A_MACHINE,
    PAUSED,
    QUEUED,
    STARTING,
    SUCCEEDED,
    TERMINAL,
    transition,
)
from tutelage_server.store.store import Store, lock_job
from tutelage_server.store.tables import Job, Tenant, now

PATIENCE = timedelta(minutes=30)
HALF_LIFE = timedelta(days=1)
"Of what a tenant used, in fair shares."
MOST_STARTING = 20
"Jobs of a launcher that are to be launched and have not been: a queue before the cluster's would know no priorities."


class Queued(msgspec.Struct, kw_only=True, frozen=True):
    """A job that may start."""

    id: str
    tenant: str
    key: str
    launcher: str
    resources: Resources
    priority: int = 0
    since: datetime
    "When it could start first."


class Busy(msgspec.Struct, kw_only=True, frozen=True):
    """A job on a machine."""

    tenant: str
    key: str
    launcher: str
    resources: Resources
    here: bool = True
    "Whether its launcher is of this machine, or of no machine."
    devices: list[int] = []
    launched: bool = True


class Start(msgspec.Struct, kw_only=True, frozen=True):
    """A decision: this job starts, with these devices."""

    job: str
    devices: list[int] = []


class _Room:
    """What is left of a launcher."""

    def __init__(self, capacity: Capacity | None, taken: Iterable[Busy], devices: set[int]) -> None:
        taken = list(taken)
        self.starts = MOST_STARTING - sum(not busy.launched for busy in taken)
        self.capacity = capacity
        self.devices = devices
        "Indices of GPUs that are taken, by whichever launcher of this machine."
        self.cpus = sum(busy.resources.cpus for busy in taken)
        self.memory = sum(busy.resources.memory_gib or 0 for busy in taken)
        self.closed = False

    def is_full(self) -> bool:
        return self.closed or self.starts <= 0 or (self.capacity is not None and self.cpus >= self.capacity.cpus)

    def fits(self, wanted: Resources) -> bool:
        if self.capacity is None:
            return True
        free = len(set(range(self.capacity.gpus)) - self.devices)
        return (
            self.cpus + wanted.cpus <= self.capacity.cpus
            and self.memory + (wanted.memory_gib or 0) <= self.capacity.memory_gib
            and wanted.gpus <= free
        )

    def could_ever_fit(self, wanted: Resources) -> bool:
        return self.capacity is None or (
            wanted.cpus <= self.capacity.cpus
            and wanted.gpus <= self.capacity.gpus
            and (wanted.memory_gib or 0) <= self.capacity.memory_gib
        )

    def take(self, wanted: Resources) -> list[int]:
        self.starts -= 1
        if self.capacity is None:
            return []
        self.cpus += wanted.cpus
        self.memory += wanted.memory_gib or 0
        devices = sorted(set(range(self.capacity.gpus)) - self.devices)[: wanted.gpus]
        self.devices.update(devices)
        return devices


def plan(
    queued: Iterable[Queued],
    busy: Iterable[Busy],
    capacities: dict[str, Capacity | None],
    used: dict[str, float],
    clock: datetime,
) -> list[Start]:
    """Decide which jobs start.

    Args:
        capacities: by launcher; None where its cluster queues by itself.
        used: what each tenant used of late, in device seconds.
    """
    running = list(busy)
    tenants: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for one in running:
        tenants[one.tenant] += weight(one.resources)
        keys[one.key] += weight(one.resources)
    devices = {device for one in running if one.here for device in one.devices}
    rooms = {
        name: _Room(capacity, (one for one in running if one.launcher == name and one.here), devices)
        for name, capacity in capacities.items()
    }

    def rank(job: Queued) -> tuple[Any, ...]:
        share = (tenants[job.tenant], used.get(job.tenant, 0.0), keys[job.key])
        return -job.priority, *share, job.since, job.id

    heap = [(rank(job), job) for job in queued if job.launcher in rooms and not rooms[job.launcher].is_full()]
    heapq.heapify(heap)
    starts = []
    while heap:
        ranked, job = heapq.heappop(heap)
        room = rooms[job.launcher]
        if room.is_full():
            continue
        if ranked != (current := rank(job)):  # its tenant got something meanwhile, and shares only grow
            heapq.heappush(heap, (current, job))
        elif room.fits(job.resources):
            starts.append(Start(job=job.id, devices=room.take(job.resources)))
            tenants[job.tenant] += weight(job.resources)
            keys[job.key] += weight(job.resources)
        elif clock - job.since > PATIENCE and room.could_ever_fit(job.resources):
            room.closed = True
    return starts


def weight(resources: Resources) -> int:
    """Devices that a job occupies: GPUs, or nodes where it asks for none."""
    return resources.nodes * max(1, resources.gpus)


def verdict_of_dependencies(after: list[str], states: dict[str, str]) -> tuple[str, str]:
    """What becomes of a queued job by the jobs that it comes after: its next state (queued: it may start; empty: it
    waits on) and the reason."""
    for job in after:
        state = states.get(job)
        if state in (FAILED, None):
            what = "failed" if state else "is gone"
            return FAILED, f"{job}, which it was to come after, {what}; submit it again without, or after another"
        if state == CANCELLED:
            return CANCELLED, f"{job}, which it was to come after, was cancelled; submit it again without it"
    return (QUEUED if all(states[job] == SUCCEEDED for job in after) else ""), ""


class Scheduler:
    """Applies the plan to a store, for the launchers of this machine and its clusters."""

    def __init__(
        self, store: Store, launchers: dict[str, Launcher], machine: str, is_here: Callable[[str], bool]
    ) -> None:
        """`is_here` tells whether a job's folder can be seen from this machine."""
        self._store = store
        self._launchers = launchers
        self._machine = machine
        self._is_here = is_here
        self._seen: set[str] = set()

    def schedule(self, token: str, leased_until: datetime) -> list[tuple[str, int, str]]:
        """Move queued jobs on; returns the ids, attempts and launchers of those that start, leased to `token`.

        Raises:
            StoreUnavailable
        """
        capacities = self._capacities()
        with self._store.reading() as session:
            if not self._decide(session, capacities):  # mostly nothing is to be done, and then nobody else need wait
                return []
        started = []
        with self._store.deciding("schedule") as session:
            for job_id, after, reason, devices in self._decide(session, capacities):
                job = lock_job(session, job_id)
                if job is None or job.state != QUEUED:
                    continue
                if after == STARTING and job.wanted != "run":
                    continue
                if after != STARTING:
                    transition(session, job, after, reason=reason, by="scheduler")
                    continue
                local = self._launchers[job.launcher].local
                transition(
                    session,
                    job,
                    STARTING,
                    by="scheduler",
                    attempt=job.attempt + 1,
                    machine=self._machine if local else "",
                    devices=devices,
                    handle="",
                    stop_asked_at=None,
                    not_before=None,
                    lease=token,
                    leased_until=leased_until,
                )
                started.append((job_id, job.attempt, job.launcher))
                self._seen.discard(job_id)
        return started

    def _capacities(self) -> dict[str, Capacity | None]:
        """Of the launchers that can say; on the others nothing starts now."""
        found = {}
        for name, launcher in self._launchers.items():
            with contextlib.suppress(TutelageError):
                found[name] = launcher.capacity()
        return found

    def _decide(
        self, session: Session, capacities: dict[str, Capacity | None]
    ) -> list[tuple[str, str, str, list[int]]]:
        clock = now()
        mine = list(self._launchers)
        rows = session.execute(
            select(
                *(Job.id, Job.tenant_id, Job.key_id, Job.launcher, Job.resources, Job.priority),
                *(Job.after, Job.wanted, Job.created_at, Job.not_before),
            ).where(
                Job.state == QUEUED,
                Job.launcher.in_(mine),
                or_(Job.not_before.is_(None), Job.not_before <= clock, Job.wanted != "run"),
            )
        ).all()
        if not rows:
            return []
        states = self._states(session, {name for row in rows for name in row.after})
        decided: list[tuple[str, str, str, list[int]]] = []
        queued = []
        for row in rows:
            if row.wanted != "run":
                decided.append((row.id, CANCELLED if row.wanted == "cancel" else PAUSED, "as was asked", []))
                continue
            after, reason = verdict_of_dependencies(row.after, states)
            if after in TERMINAL:
                decided.append((row.id, after, reason, []))
            elif after and self._sees(row.id):  # wherever it ran before: with its folder, its checkpoint is here
                queued.append(row)
        if queued:
            decided += [
                (start.job, STARTING, "", start.devices) for start in self._starts(session, queued, capacities, clock)
            ]
        return decided

    def _sees(self, job_id: str) -> bool:
        if job_id not in self._seen and self._is_here(job_id):
            self._seen.add(job_id)
        return job_id in self._seen

    def _starts(
        self, session: Session, rows: list[Any], capacities: dict[str, Capacity | None], clock: datetime
    ) -> list[Start]:
        busy = [
            Busy(
                tenant=row.tenant_id,
                key=row.key_id,
                launcher=row.launcher,
                resources=msgspec.convert(row.resources, Resources),
                here=row.machine in ("", self._machine),
                devices=row.devices,
                launched=bool(row.handle),
            )
            for row in session.execute(
                select(
                    *(Job.tenant_id, Job.key_id, Job.launcher, Job.machine),
                    *(Job.resources, Job.devices, Job.handle),
                ).where(Job.state.in_(ON_A_MACHINE))
            )
        ]
        cpus = Counter[str]()
        for one in busy:
            cpus[one.launcher] += one.resources.cpus if one.here else 0
        full = {name for name, has in capacities.items() if has is not None and cpus[name] >= has.cpus}
        queued = [
            Queued(
                id=row.id,
                tenant=row.tenant_id,
                key=row.key_id,
                launcher=row.launcher,
                resources=msgspec.convert(row.resources, Resources),
                priority=row.priority,
                since=max(row.created_at, row.not_before or row.created_at),
            )
            for row in rows
            if row.launcher not in full  # mostly all are, and a long queue costs little then
        ]
        if not queued:
            return []
        tenants = session.execute(select(Tenant.id, Tenant.used, Tenant.used_at).where(Tenant.used > 0))
        used = {row.id: decayed(row.used, row.used_at, clock) for row in tenants}
        return plan(queued, busy, capacities, used, clock)

    def _states(self, session: Session, jobs: set[str]) -> dict[str, str]:
        states: dict[str, str] = {}
        names = sorted(jobs)
        for start in range(0, len(names), 500):
            some = select(Job.id, Job.state).where(Job.id.in_(names[start : start + 500]))
            states.update(session.execute(some).tuples().all())
        return states


def decayed(used: float, at: datetime, clock: datetime) -> float:
    """What is left of what a tenant used, which halves with every day."""
    days: float = max(timedelta(), clock - at) / HALF_LIFE
    return float(used * 0.5**days)
