"""Whatever happens in whatever order: terminal states stay, events count, and no job runs twice at once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from clusters import Cluster, Service
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import update

from tutelage.launcher import Capacity, Resources
from tutelage_server.jobs.states import ON_A_MACHINE, PAUSED, QUEUED, TERMINAL, WAITING, transition
from tutelage_server.store.store import lock_job
from tutelage_server.store.tables import Job

GPUS = 2


class Lives(RuleBasedStateMachine):
    """A cluster with two GPUs, two dispatchers, and everything that people, machines and networks do to them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        cluster = Cluster(Capacity(cpus=100, gpus=GPUS, memory_gib=1000))
        self.service = Service(self.folder, cluster=cluster)
        self.cluster = cluster
        self.jobs: list[str] = []
        self.ended: dict[str, tuple[str, str]] = {}
        self.dispatchers = [self.service.dispatcher(), self.service.dispatcher()]

    def teardown(self) -> None:
        self.service.store.close()
        shutil.rmtree(self.folder)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(gpus=st.integers(0, GPUS), retries=st.integers(0, 2), follows=st.booleans())
    def submit(self, gpus: int, retries: int, follows: bool) -> None:
        after = self.jobs[-1:] if follows else []
        self.jobs.append(self.service.submit(resources=Resources(gpus=gpus), max_retries=retries, after=after))

    @rule(which=st.integers(0, 1), times=st.integers(1, 3))
    def dispatch(self, which: int, times: int) -> None:
        for _ in range(times):
            self.dispatchers[which].step()

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        """A dispatcher dies and its leases run out."""
        with self.service.store.writing() as session:
            session.execute(update(Job).where(Job.lease == self.dispatchers[which].token).values(leased_until=None))
        self.dispatchers[which] = self.service.dispatcher()

    @rule(which=st.integers(0, 1))
    def lose_leases(self, which: int) -> None:
        """A dispatcher is held up so long, or its clock is so wrong, that others take its jobs; it doesn't know."""
        with self.service.store.writing() as session:
            session.execute(update(Job).where(Job.lease == self.dispatchers[which].token).values(leased_until=None))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), wanted=st.sampled_from(["pause", "cancel", "run"]))
    def ask(self, data: st.DataObject, wanted: str) -> None:
        """People pause, cancel and resume, as the HTTP side does it."""
        job_id = data.draw(st.sampled_from(self.jobs))
        with self.service.store.writing() as session:
            job = lock_job(session, job_id)
            assert job is not None
            if job.state in (PAUSED, WAITING) and wanted == "run":
                transition(session, job, QUEUED, by="key:1", wanted="run")
            elif job.state in (PAUSED, WAITING, QUEUED) and wanted == "cancel":
                transition(session, job, "cancelled", by="key:1", reason="no longer needed")
            elif job.state in ON_A_MACHINE and job.wanted != "cancel":
                job.wanted = wanted

    @precondition(lambda self: self._in("pending"))
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.cluster.begin(self._draw(data, "pending"))

    @precondition(lambda self: self._in("running"))
    @rule(data=st.data(), kind=st.sampled_from(["step", "checkpoint"]))
    def tell(self, data: st.DataObject, kind: str) -> None:
        self.cluster.tell(self._draw(data, "running"), kind, step=1, steps=9)

    @precondition(lambda self: self._in("running"))
    @rule(data=st.data(), code=st.sampled_from([0, 0, 1, 2, 3, 137, 143]), why=st.sampled_from(["", "time-limit"]))
    def finish(self, data: st.DataObject, code: int, why: str) -> None:
        self.cluster.finish(self._draw(data, "running"), code, why=why if code > 100 else "")

    @precondition(lambda self: self._in("running", "pending"))
    @rule(data=st.data(), why=st.sampled_from(["node-lost", "killed", "preempted", "cancelled", "time-limit"]))
    def vanish(self, data: st.DataObject, why: str) -> None:
        self.cluster.vanish(self._draw(data, "running", "pending"), why)

    @precondition(lambda self: self._in("running"))
    @rule(data=st.data(), saves=st.booleans())
    def preempt(self, data: st.DataObject, saves: bool) -> None:
        """What is running is to begin again, as the same attempt."""
        self.cluster.preempt(self._draw(data, "running"), saves)

    @rule(which=st.sampled_from(["unreachable", "loses_answers"]), on=st.booleans())
    def network(self, which: str, on: bool) -> None:
        setattr(self.cluster, which, on)

    @invariant()
    def holds(self) -> None:
        devices: list[int] = []
        for job_id in self.jobs:
            job, events = self.service.job(job_id), self.service.events(job_id)
            assert [event.number for event in events] == list(range(1, len(events) + 1)), "a gap in the events"
            assert job.events == len(events)
            devices += job.devices
            if job_id in self.ended:
                assert (job.state, job.reason) == self.ended[job_id], "a terminal state changed"
            if job.state in TERMINAL:
                self.ended[job_id] = (job.state, job.reason)
                assert job.reason or job.state == "succeeded"
            told = [event.data for event in events if event.kind in ("step", "checkpoint")]
            lines = self.service.settings.folder / "jobs" / job_id / "run" / "events.jsonl"
            written = lines.read_text().count("\n") if lines.exists() else 0
            assert len(told) <= written, "an event came twice"
            if job.state not in ON_A_MACHINE and job.attempt:
                assert len(told) == written, "an event was lost"
        assert len(devices) == len(set(devices)), "a device was given twice"
        assert set(devices) <= set(range(GPUS))

    def _in(self, *states: str):
        return [attempt for attempt in self.cluster.attempts.values() if attempt.status.state in states]

    def _draw(self, data: st.DataObject, *states: str):
        return data.draw(st.sampled_from(self._in(*states)))


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # making a failure small would take minutes
)
