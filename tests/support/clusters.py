"""A simulated cluster for tests of the dispatcher: no process runs, and every event is the test's to choose."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from tutelage.errors import TutelageError
from tutelage.launcher import Capacity, Launch, Launcher, LauncherUnreachable, Resources, Status
from tutelage.runs.attempt import CLOSED, OUTCOME
from tutelage_server.accounts.caller import SCOPES
from tutelage_server.accounts.keys import make_key, tenant_named
from tutelage_server.jobs.dispatching import Dispatcher
from tutelage_server.jobs.tending import Pace
from tutelage_server.settings import load_settings
from tutelage_server.store.migrations import upgrade
from tutelage_server.store.store import Store, lock_job
from tutelage_server.store.tables import Event, Job, new_id

QUICK = Pace(settle=0, settle_here=0, absent=0, absent_here=0, backoff=0, again=0)


class Attempt:
    """What the cluster holds of one launch."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.status = Status(state="pending")
        self.asked_to_stop = 0
        self.restarts = 0
        self.kills = 0

    @property
    def folder(self) -> Path:
        return self.launch.folder

    @property
    def run(self) -> Path:
        return self.folder.parents[1] / "run"


class Cluster(Launcher):
    """A cluster that does what the test says; several dispatchers may share the object, as they share a real one."""

    name = "simulated"

    def __init__(self, capacity: Capacity | None = None, local: bool = False) -> None:
        super().__init__()
        self.local = local
        self.room = capacity
        self.attempts: dict[str, Attempt] = {}
        self.unreachable = False
        self.loses_answers = False
        self.refuses = ""
        self.questions = 0
        self.most_running: dict[Path, int] = {}

    def capacity(self) -> Capacity | None:
        return self.room

    def launch(self, launch: Launch) -> str:
        self._answer()
        if self.refuses:
            raise TutelageError.at("partition", self.refuses)
        handle = f"{launch.name}#{len(self.attempts)}"
        self.attempts[handle] = Attempt(launch)
        if self.loses_answers:
            raise LauncherUnreachable.at("cluster", "the answer was lost")
        return handle

    def find(self, launch: Launch) -> str:
        self._answer()
        found = [handle for handle, attempt in self.attempts.items() if attempt.launch.name == launch.name]
        alive = [handle for handle in found if self.attempts[handle].status.state in ("pending", "running")]
        return (alive or found or [""])[-1]

    def statuses(self, attempts: dict[str, Launch]) -> dict[str, Status]:
        self._answer()
        self.questions += 1
        return {handle: self.attempts[handle].status for handle in attempts if handle in self.attempts}

    def stop(self, handle: str, launch: Launch) -> None:
        self._answer()
        self.attempts[handle].asked_to_stop += 1

    def kill(self, handle: str, launch: Launch) -> None:
        self._answer()
        for attempt in self.attempts.values():
            if attempt.launch.name == launch.name:
                attempt.kills += 1
                if attempt.status.state in ("pending", "running"):
                    attempt.status = Status(state="ended", why="killed")

    def _answer(self) -> None:
        if self.unreachable:
            raise LauncherUnreachable.at("cluster", "no answer")

    # What happens on the cluster

    def of(self, job_id: str) -> Attempt:
        """The attempt of a job that was launched last."""
        return [
            attempt for attempt in self.attempts.values() if f"-{job_id.partition('-')[2]}-" in attempt.launch.name
        ][-1]

    def begin(self, attempt: Attempt) -> bool:
        """The attempt's command starts: it claims its folder, or ends at once."""
        try:
            with (attempt.folder / f"claimed-{attempt.restarts}.json").open("x") as file:
                json.dump({"pid": os.getpid(), "started": 1, "host": "node", "boot_id": "boot"}, file)
        except FileExistsError:
            attempt.status = Status(state="ended", why="exited", exit_code=0)
            return False
        if (attempt.folder / CLOSED).exists():
            attempt.status = Status(state="ended", why="exited", exit_code=0)
            return False
        running = [
            other for other in self.attempts.values() if other.run == attempt.run and other.status.state == "running"
        ]
        assert not running, "two attempts of one job at once"
        attempt.status = Status(state="running", where="node-1")
        return True

    def tell(self, attempt: Attempt, kind: str, **fields: Any) -> None:
        """The run appends an event."""
        attempt.run.mkdir(exist_ok=True)
        with (attempt.run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": "2026-01-01T00:00:00.000Z", "event": kind, **fields}) + "\n")

    def finish(self, attempt: Attempt, code: int, **fields: Any) -> None:
        """The run ends by itself, and says so."""
        outcome = {"exit_code": code, "signal": 0, "state": "", "reason": "", "why": "", "ended": "", **fields}
        outcome.setdefault("start", attempt.restarts)
        (attempt.folder / OUTCOME).write_text(json.dumps(outcome))
        attempt.status = Status(state="ended", why="exited", exit_code=code)

    def preempt(self, attempt: Attempt, saves: bool = True) -> None:
        """The cluster stops it, and puts it into its queue again."""
        if saves:
            self.finish(attempt, 143)
        attempt.restarts += 1
        attempt.status = Status(state="pending", detail=f"started again {attempt.restarts} times")

    def vanish(self, attempt: Attempt, why: Any = "node-lost") -> None:
        """Its node dies."""
        attempt.status = Status(state="ended", why=why)


class Service:
    """A store with one simulated cluster, called `cluster`, and dispatchers on it."""

    def __init__(self, tmp_path: Path, url: str = "", cluster: Cluster | None = None, **settings: Any) -> None:
        launchers = {"cluster": {"kind": "simulated"}}
        self.settings = load_settings(
            **{"home": tmp_path / "home", "database": url, "launchers": launchers, **settings}
        )
        self.store = Store(self.settings.database_url)
        upgrade(self.store)
        self._keys: dict[str, tuple[str, str]] = {}
        self.cluster = cluster or Cluster()

    def dispatcher(self, pace: Pace = QUICK, machine: str = "") -> Dispatcher:
        settings = msgspec.structs.replace(self.settings, machine=machine)
        return Dispatcher(self.store, settings, {"cluster": self.cluster}, pace=pace)

    def submit(self, tenant: str = "one", resources: Resources | None = None, **fields: Any) -> str:
        """A queued job; its id."""
        tenant_id, key_id = self.key(tenant)
        job = Job(
            id=new_id("job"), tenant_id=tenant_id, key_id=key_id, name="job", state="queued", recipe={},
            launcher="cluster", resources=msgspec.to_builtins(resources or Resources()),
        )  # fmt: skip
        for name, value in fields.items():
            setattr(job, name, value)
        (self.settings.folder / "jobs" / job.id).mkdir(parents=True)
        with self.store.writing() as session:
            session.add(job)
        return job.id

    def key(self, tenant: str) -> tuple[str, str]:
        """The ids of a tenant and of a key of it, made when first asked for."""
        if tenant not in self._keys:
            with self.store.writing() as session:
                owner = tenant_named(session, tenant).id
                self._keys[tenant] = owner, make_key(session, owner, "test", SCOPES)[0].id
        return self._keys[tenant]

    def job(self, job_id: str) -> Job:
        with self.store.reading() as session:
            return session.get_one(Job, job_id)

    def want(self, job_id: str, wanted: str) -> None:
        with self.store.writing() as session:
            job = lock_job(session, job_id)
            assert job is not None
            job.wanted = wanted

    def events(self, job_id: str) -> list[Event]:
        with self.store.reading() as session:
            return list(session.query(Event).where(Event.job_id == job_id).order_by(Event.number))

    def states(self, job_id: str) -> list[str]:
        """The states that a job has gone through, by its events."""
        return [event.data["to"] for event in self.events(job_id) if event.kind == "state"]


def until(true: Any, seconds: float = 20, every: float = 0.05) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(every)
