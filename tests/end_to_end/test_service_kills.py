"""The service is killed two hundred times, wherever it happens to be, and loses nothing.

Killed (SIGKILL) are the process that submits, two dispatchers, dispatchers between the start of an attempt and its
answer, attempts and their runs; and connections to the database are cut. Every job must end well, no two attempts of a
job may ever run at once, no process may be left, and every stream of events must count from 1 without a gap and hold
the run's own events once each.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from databases import database, postgres, postgres_cluster  # noqa: F401
from sqlalchemy import text

from tutelage.launcher import Launch
from tutelage.runs.attempt import claims, is_alive
from tutelage_plugins.launchers import local
from tutelage_server.accounts.keys import make_key, tenant_named
from tutelage_server.jobs.dispatching import Dispatcher
from tutelage_server.jobs.launching import make_launchers
from tutelage_server.jobs.states import TERMINAL
from tutelage_server.jobs.tending import Pace
from tutelage_server.settings import Settings, load_settings
from tutelage_server.store.migrations import upgrade
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Event, Job, Key, new_id

KILLS, ACTIVE = 200, 8
TRAINER = Path(__file__).parents[1] / "support" / "fake_trainer.py"
PACE = Pace(interval=0.05, lease=3, settle_here=0.1, absent_here=0.5, backoff=0.05, again=0.5)
DEADLY = 0.15
"How often a launch is the dispatcher's last deed."

spawn = multiprocessing.get_context("fork")


class DeadlyLocal(local.Local):
    """Kills its process between the start of an attempt and the answer, now and then."""

    kills: Path

    def launch(self, launch: Launch) -> str:
        handle = super().launch(launch)
        if random.random() < DEADLY:
            with self.kills.open("a") as file:
                file.write("launch\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return handle


def submit(settings: Settings, seed: int) -> None:
    """What submits: a job at a time, so that some are always there until enough was killed."""
    store = Store(settings.database_url)
    chance = random.Random(seed)
    while not (settings.folder / "enough").exists():
        try:
            with store.deciding("submit") as session:
                number = session.query(Job).count()
                active = session.query(Job).filter(Job.state.not_in(TERMINAL)).count()
                key = session.query(Key).first()
                job = Job(
                    id=new_id("job"), tenant_id=key.tenant_id, key_id=key.id, name=f"job {number}", state="queued",
                    recipe={}, launcher="local", resources={"cpus": 1}, max_retries=10_000,
                )  # fmt: skip
                if active < ACTIVE:
                    (settings.folder / "jobs" / job.id).mkdir(parents=True)
                    session.add(job)
        except StoreUnavailable:
            continue
        time.sleep(chance.uniform(0, 0.2))


def dispatch(settings: Settings) -> None:
    """A dispatcher, as its own process runs it."""
    local.BEGINNING = 3.0
    random.seed()
    found = make_launchers(settings)
    launcher = DeadlyLocal(found["local"].config)
    launcher.kills = settings.folder / "kills"
    command = [sys.executable, "-I", "-S", str(TRAINER), "6", "0.8"]
    dispatcher = Dispatcher(Store(settings.database_url), settings, {"local": launcher}, pace=PACE, command=command)
    import threading

    dispatcher.run(threading.Event())


def start(work, *arguments) -> multiprocessing.Process:
    process = spawn.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


class Killer:
    """Kills, and starts anew what was killed."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.random = random.Random(seed)
        self.count: Counter[str] = Counter()
        self.submitting = start(submit, settings, seed)
        self.dispatchers = [start(dispatch, settings) for _ in range(2)]

    @property
    def total(self) -> int:
        kills = self.settings.folder / "kills"
        self.count["launch call"] = len(kills.read_text().splitlines()) if kills.exists() else 0
        return sum(self.count.values())

    def kill_one(self) -> None:
        kinds = ["server", "dispatcher", "dispatcher", "attempt", "attempt", "run", "run"]
        if "postgresql" in self.settings.database_url:
            kinds += ["connections"] * 2
        kind = self.random.choice(kinds)
        if getattr(self, f"kill_{kind}")():
            self.count[kind] += 1

    def kill_server(self) -> bool:
        alive = self.submitting.is_alive()
        self.submitting.kill()
        return alive

    def kill_dispatcher(self) -> bool:
        process = self.random.choice(self.dispatchers)
        alive = process.is_alive()
        process.kill()
        return alive

    def kill_attempt(self) -> bool:
        pids = self._attempts()
        return bool(pids) and _kill(self.random.choice(pids))

    def kill_run(self) -> bool:
        parents = set(self._attempts())
        pids = [pid for pid, parent in _processes().items() if parent in parents]
        return bool(pids) and _kill(self.random.choice(pids))

    def kill_connections(self) -> bool:
        store = Store(self.settings.database_url)
        try:
            with store.writing() as session:
                cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
                return bool(session.execute(text(cut)).scalar())
        finally:
            store.close()

    def revive(self) -> None:
        if not self.submitting.is_alive() and self.submitting.exitcode != 0:
            self.submitting = start(submit, self.settings, self.random.randrange(10**6))
        for index, process in enumerate(self.dispatchers):
            if not process.is_alive():
                self.dispatchers[index] = start(dispatch, self.settings)

    def end(self) -> None:
        for process in [self.submitting, *self.dispatchers]:
            process.kill()
            process.join()

    def _attempts(self) -> list[int]:
        """Processes that carry out an attempt now."""
        alive = []
        for folder in self.settings.folder.glob("jobs/*/attempts/*"):
            if not (folder / "outcome.json").exists():
                with contextlib.suppress(ValueError):
                    alive += [claim.pid for claim in claims(folder) if is_alive(claim)]
        return alive


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(tmp_path, database, record_property):  # noqa: F811
    launchers = {"local": {"kind": "local", "cpus": 5, "gpus": 0}}
    settings = load_settings(home=tmp_path / "home", database=database, launchers=launchers)
    store = Store(settings.database_url)
    upgrade(store)
    with store.writing() as session:
        make_key(session, tenant_named(session, "one").id, "test")
    store.close()
    killer = Killer(settings, seed=6)
    began = time.monotonic()
    try:
        while killer.total < KILLS:
            assert time.monotonic() - began < 120, f"only {killer.total} kills"
            time.sleep(killer.random.uniform(0.02, 0.2))
            killer.kill_one()
            killer.revive()
        killed = time.monotonic() - began
        (settings.folder / "enough").touch()
        while killer.submitting.is_alive() or not TERMINAL.issuperset((states := jobs(settings)).values()):
            assert time.monotonic() - began < 170, Counter(states.values())
            time.sleep(0.2)
            killer.revive()
        print(
            {
                "jobs": Counter(states.values()),
                "attempts": len(list(settings.folder.glob("jobs/*/attempts/*"))),
                "kills": dict(killer.count),
                "seconds": round(killed, 1),
                "until all ended": round(time.monotonic() - began, 1),
            }
        )
    finally:
        killer.end()
    assert set(jobs(settings).values()) == {"succeeded"}
    assert len(jobs(settings)) > ACTIVE
    assert [str(file) for file in settings.folder.glob("jobs/*/overlaps")] == []
    for _ in range(100):  # the last attempts are ending
        if not (left := strays(settings)):
            break
        time.sleep(0.1)
    assert left == []
    check_events(settings)
    check_runs(settings)


def jobs(settings: Settings) -> dict[str, str]:
    store = Store(settings.database_url)
    try:
        with store.reading() as session:
            return dict(session.query(Job.id, Job.state).tuples())
    finally:
        store.close()


def check_events(settings: Settings) -> None:
    """Every stream counts 1..n and holds each of the run's events once, in order."""
    store = Store(settings.database_url)
    with store.reading() as session:
        for job in session.query(Job):
            events = session.query(Event).where(Event.job_id == job.id).order_by(Event.number).all()
            assert [event.number for event in events] == list(range(1, job.events + 1))
            lines = (settings.folder / "jobs" / job.id / "run" / "events.jsonl").read_bytes()
            told = [json.loads(line) for line in lines.splitlines()]
            followed = [
                {"event": event.kind, **event.data} for event in events if event.kind not in ("state", "notice")
            ]
            assert followed == told
            ends = [event for event in events if event.kind == "state" and event.data["to"] in TERMINAL]
            assert len(ends) == 1
            assert ends[0].number == job.events
    store.close()


def check_runs(settings: Settings) -> None:
    """No attempt ran twice."""
    for journal in settings.folder.glob("jobs/*/journal"):
        ran = Counter(line.split()[0] for line in journal.read_text().splitlines())
        assert set(ran.values()) == {1}


def strays(settings: Settings) -> list[str]:
    """Processes that belong to an attempt."""
    names = {folder.name for folder in settings.folder.glob("jobs/*")}
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            for variable in environ.read_bytes().split(b"\0"):
                if variable.startswith(b"TUTELAGE_ATTEMPT=") and any(name in variable.decode() for name in names):
                    found.append(f"{environ.parent.name} {variable.decode()}")
    return found


def _processes() -> dict[int, int]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
