"""Tending one attempt: following it, ending it where people want that, and deciding what comes after its end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

import msgspec
from sqlalchemy.orm import Session

from tutelage.errors import TutelageError
from tutelage.launcher import Launch, Launcher, LauncherUnreachable, Status
from tutelage.runs.attempt import CLOSED, Outcome, close, last_outcome
from tutelage.runs.folder import EVENTS
from tutelage_server.jobs import ending
from tutelage_server.jobs.following import ingest, read_events, saved_something
from tutelage_server.jobs.launching import job_folder, launch_of, prepare_attempt, secrets_of
from tutelage_server.jobs.states import CANCELLING, ON_A_MACHINE, PAUSING, RUNNING, STARTING, TERMINAL, transition
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, lock_job
from tutelage_server.store.tables import Job, now

ALIVE = ("pending", "running")
_log = logging.getLogger("tutelage.dispatcher")


class Pace(msgspec.Struct, kw_only=True, frozen=True):
    """How long the dispatcher waits for what, in seconds."""

    interval: float = 0.5
    "Between two looks at the jobs."
    lease: float = 30.0
    "Until others take over the jobs of a dispatcher of which nothing is known."
    settle: float = 10.0
    "Until a file that another machine wrote is surely seen here."
    settle_here: float = 0.2
    "The same for attempts of this machine."
    absent: float = 60.0
    "Until an attempt of which the cluster knows nothing counts as never started, and until it is surely known why one \
ended."
    absent_here: float = 2.0
    pausing: float = 600.0
    "For saving a checkpoint, before a run that is to pause is killed."
    cancelling: float = 60.0
    "The same for one that is to be cancelled."
    again: float = 10.0
    "Between two requests to an attempt to stop."
    launching: float = 5.0
    "For launches at a time, before the others are looked at."
    backoff: float = 2.0
    "Before the first retry."


class NotMine(Exception):
    """Somebody else holds the job now, or it has moved on."""


class _Memory(msgspec.Struct):
    """What is remembered of an attempt between two looks; it may be forgotten."""

    absent_since: float | None = None
    ended: Status | None = None
    "What the cluster said first of its end, before anything was done here."
    buried_at: float | None = None
    outcome_since: float | None = None
    told_at: float | None = None
    handles: set[str] = set()


class Tender:
    """Tends the attempts of one launcher on behalf of a dispatcher, whose token it writes with."""

    def __init__(
        self, store: Store, settings: Settings, token: str, launcher: Launcher, pace: Pace, command: list[str] | None
    ) -> None:
        self._store = store
        self._settings = settings
        self._token = token
        self._launcher = launcher
        self._pace = pace
        self._command = command
        self._settle = pace.settle_here if launcher.local else pace.settle
        self._absent = pace.absent_here if launcher.local else pace.absent
        self._memories: dict[tuple[str, int], _Memory] = {}

    def forget_others(self, jobs: list[Job]) -> None:
        """Forget all attempts but those of these jobs."""
        for gone in self._memories.keys() - {(job.id, job.attempt) for job in jobs}:
            del self._memories[gone]

    def launch(self, job: Job, fresh: bool) -> None:
        """Launch an attempt, unless it was launched before; its handle is kept.

        Args:
            fresh: whether nobody can have launched it yet.
        Raises:
            NotMine, LauncherUnreachable, StoreUnavailable
            OSError: when the attempt's folder can't be written; nothing was launched then.
        """
        prepare_attempt(self._settings, job, self._command)
        launch = launch_of(self._settings, job)
        try:
            launch.environment |= secrets_of(self._settings, job)
            handle = ("" if fresh else self._launcher.find(launch)) or self._launcher.launch(launch)
        except (LauncherUnreachable, OSError):
            raise
        except TutelageError as error:
            self._give_up(job, launch, str(error))
        except Exception as error:  # a launcher's fault, whoever wrote it
            _log.exception("the launcher failed to launch %s", launch.name)
            self._give_up(job, launch, f"its launcher failed ({type(error).__name__})")
        else:
            self._keep_handle(job, handle)

    def _give_up(self, job: Job, launch: Launch, why: str) -> None:
        """End an attempt that can't be started, unless it was all the same."""
        if not close(launch.folder):
            self._end(job, launch, None, Status(state="absent", detail=f"it can't be started: {why}"))

    def find(self, job: Job) -> None:
        """Look for an attempt whose launch was not answered, where it began or is to end.

        Raises:
            NotMine, LauncherUnreachable, StoreUnavailable
        """
        launch = launch_of(self._settings, job)
        if launch.folder.exists() and (handle := self._launcher.find(launch)):
            self._keep_handle(job, handle)

    def tend(self, job: Job, status: Status | None) -> None:
        """Do what is to be done for an attempt. `status` is None while the cluster can't be asked.

        Raises:
            NotMine, LauncherUnreachable, StoreUnavailable
        """
        launch = launch_of(self._settings, job)
        launch.folder.mkdir(parents=True, exist_ok=True)
        status = self._believed(job, launch, status)
        begun = any(launch.folder.glob("claimed-*.json"))
        job = self._heed(job)
        if begun and job.state == STARTING:
            with self._holding(job) as (session, job):
                transition(
                    session, job, RUNNING, reason=f"on {status.where}" if status and status.where else "", by="launcher"
                )
        # First: then all of the run's events are there. One that is to begin again left its former start's.
        outcome = None if status and status.state == "pending" else last_outcome(launch.folder)
        self._ingest(job)
        if outcome is not None:
            self._conclude(job, launch, outcome, status)
        elif status is None:
            return
        elif status.state in ALIVE:
            memory = self._memory(job)
            memory.absent_since = memory.buried_at = memory.outcome_since = None
            if job.state in (PAUSING, CANCELLING):
                self._stop(job, launch, status)
        elif self._is_over(job, launch, status, begun):
            self._ingest(job)
            run = job_folder(self._settings, job.id) / "run"
            outcome = last_outcome(launch.folder) or ending.outcome_of_record(launch.folder, run)
            self._end(job, launch, outcome, status)

    def _believed(self, job: Job, launch: Launch, status: Status | None) -> Status | None:
        """What the cluster says; of an end what it said first: closing it here looks like people's doing later."""
        memory = self._memory(job)
        if status is None or status.state in ALIVE:
            memory.ended = None
            return status
        if memory.ended is None:
            ours = status.why == "cancelled" and (launch.folder / CLOSED).exists()
            memory.ended = msgspec.structs.replace(status, why="killed") if ours else status
        return memory.ended

    def _heed(self, job: Job) -> Job:
        """See to it that a job's state says what people want of it."""
        ask = {"pause": PAUSING, "cancel": CANCELLING}.get(job.wanted)
        if ask is None or job.state == ask or (job.state, ask) == (CANCELLING, PAUSING):
            return job
        with self._holding(job) as (session, locked):
            if locked.wanted == job.wanted and locked.state == job.state:
                transition(session, locked, ask, by="request", stop_asked_at=now())
        return locked

    def _ingest(self, job: Job) -> None:
        """Append what the run told since the last look to the job's events."""
        folder = job_folder(self._settings, job.id)
        with contextlib.suppress(FileNotFoundError):
            while (folder / "run" / EVENTS).stat().st_size > job.run_offset:
                read = read_events(folder / "run", job.run_offset, folder)
                if read is None:
                    return
                with self._holding(job) as (session, locked):
                    ingest(session, locked, read)
                job.run_offset = locked.run_offset

    def _stop(self, job: Job, launch: Launch, status: Status) -> None:
        """Ask an attempt to save and stop; kill it when it has not begun, or takes too long."""
        memory, clock = self._memory(job), time.monotonic()
        if not close(launch.folder) or status.state == "pending":
            self._launcher.kill(job.handle, launch)
            return
        if memory.told_at is not None and clock - memory.told_at < self._pace.again:
            return
        memory.told_at = clock
        patience = self._pace.pausing if job.state == PAUSING else self._pace.cancelling
        asked = job.stop_asked_at or now()
        if (now() - asked).total_seconds() > patience:
            self._launcher.kill(job.handle, launch)
        else:
            self._launcher.stop(job.handle, launch)

    def _is_over(self, job: Job, launch: Launch, status: Status, begun: bool) -> bool:
        """Make sure that an attempt, of which the cluster says that it ended or never was, is over for good."""
        memory, clock = self._memory(job), time.monotonic()
        if status.state == "absent" and not begun and job.state not in (PAUSING, CANCELLING):
            memory.absent_since = memory.absent_since or clock
            if clock - memory.absent_since < self._absent:
                return False
        if memory.buried_at is None:
            close(launch.folder)
            other = self._launcher.find(launch)
            if other and other not in memory.handles | {job.handle}:  # launched twice, and this one did not get it
                memory.handles = memory.handles | {job.handle}
                self._keep_handle(job, other)
                return False
            if job.handle:
                self._launcher.kill(job.handle, launch)
            memory.buried_at = clock
        return clock - memory.buried_at >= self._settle

    def _conclude(self, job: Job, launch: Launch, outcome: Outcome, status: Status | None) -> None:
        """End an attempt by its outcome, once it is known what the cluster adds to it."""
        memory, clock = self._memory(job), time.monotonic()
        memory.outcome_since = memory.outcome_since or clock
        alive = status is None or status.state in ALIVE
        known_soon = status is None or clock - memory.outcome_since < self._absent
        if not (alive and known_soon and not ending.is_final(outcome, job.wanted)):
            self._end(job, launch, outcome, status)

    def _end(self, job: Job, launch: Launch, outcome: Outcome | None, status: Status | None) -> None:
        alive = status is None or status.state in ALIVE
        known = status or Status(state="running")
        with contextlib.suppress(OSError):  # a cluster may start again what ended; on a full disk that is a small risk
            close(launch.folder)
        with self._holding(job) as (session, locked):
            verdict = ending.judge(locked, outcome, known, saved_something(locked))
            if verdict.state in TERMINAL or not alive:
                ending.account(session, locked, launch.folder, self._settings.hourly_usd)
                verdict = ending.afford(session, locked, verdict, self._settings)
                ending.apply(session, locked, verdict, self._pace.backoff)
                return
        if status is not None:  # another attempt may follow, so nothing of this one is to live on
            self._launcher.kill(job.handle, launch)

    def _keep_handle(self, job: Job, handle: str) -> None:
        with self._holding(job) as (_, locked):
            locked.handle = handle
        job.handle = handle

    @contextlib.contextmanager
    def _holding(self, job: Job) -> Iterator[tuple[Session, Job]]:
        """A transaction on a job that is still this dispatcher's, in the same attempt."""
        with self._store.writing() as session:
            locked = lock_job(session, job.id)
            if locked is None or (locked.lease, locked.attempt) != (self._token, job.attempt):
                raise NotMine
            if locked.state not in ON_A_MACHINE:
                raise NotMine
            yield session, locked

    def _memory(self, job: Job) -> _Memory:
        return self._memories.setdefault((job.id, job.attempt), _Memory())
