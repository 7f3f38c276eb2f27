"""The dispatcher: starts what the schedule says, follows what runs, and ends what people want ended.

It may be killed between any two lines. What it must not forget is in the store or in the attempt's folder before it
acts, and all that it does may be done again:

- an attempt is launched only after nothing of it was found, and it runs once however often it is launched, since it
  claims its folder;
- a job leaves an attempt only when that attempt began and has ended, or was closed, so that it can't begin any more;
- every write checks, in its own transaction, that this dispatcher still holds the job and that it is the same attempt.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import defer

from tutelage.launcher import Launcher, LauncherUnreachable, Status
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.launching import job_folder, launch_of
from tutelage_server.jobs.leasing import new_token, renew
from tutelage_server.jobs.scheduling import Scheduler
from tutelage_server.jobs.states import ON_A_MACHINE, STARTING
from tutelage_server.jobs.tending import NotMine, Pace, Tender
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, StoreUnavailable, lock_job
from tutelage_server.store.tables import Job, now

LOG = logging.getLogger("tutelage.dispatcher")


class Dispatcher:
    """Dispatches the jobs of some launchers; several may work on one store."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        launchers: dict[str, Launcher],
        *,
        pace: Pace | None = None,
        command: list[str] | None = None,
    ) -> None:
        """`command` is run by attempts in place of training."""
        self.token = new_token()
        self._store = store
        self._settings = settings
        self._launchers = launchers
        self._pace = pace = pace or Pace()
        self._machine = settings.machine_name
        self._scheduler = Scheduler(store, launchers, self._machine, self._sees)
        self._fresh: set[tuple[str, int]] = set()
        "Attempts that nobody but this process can have launched, and it has not."
        self._tenders = {
            name: Tender(store, settings, self.token, launcher, pace, command) for name, launcher in launchers.items()
        }
        self._unreachable: set[str] = set()
        self._wake = {name: threading.Event() for name in launchers}

    def run(self, stop: threading.Event) -> None:
        """Dispatch until `stop` is set; then leave the jobs to others. A store that is gone is waited for."""
        threads = [
            threading.Thread(target=self._repeat, args=(self._follower(name), stop, wake), daemon=True, name=name)
            for name, wake in self._wake.items()
        ]
        for thread in threads:
            thread.start()
        self._repeat(self.lead, stop, threading.Event())
        for thread in threads:
            thread.join(timeout=2)
        with contextlib.suppress(StoreUnavailable):
            self.release()

    def step(self) -> None:
        """Look at everything once."""
        self.lead()
        for name in self._launchers:
            self.follow(name)

    def lead(self) -> None:
        """Take over jobs that nobody follows, and start queued ones.

        Raises:
            StoreUnavailable
        """
        renew(self._store, self.token, list(self._launchers), self._machine, self._pace.lease)
        for job_id, attempt, launcher in self._scheduler.schedule(
            self.token, now() + timedelta(seconds=self._pace.lease)
        ):
            self._fresh.add((job_id, attempt))
            self._wake[launcher].set()

    def follow(self, name: str) -> None:
        """Launch, follow and end the attempts of one launcher.

        Raises:
            StoreUnavailable
        """
        launcher, tender = self._launchers[name], self._tenders[name]
        jobs = self._jobs(name)
        tender.forget_others(jobs)
        try:
            self._launch(tender, [job for job in jobs if _is_to_launch(job)])
            self._find(tender, [job for job in jobs if not job.handle and not _is_to_launch(job)])
            asked = {job.handle: launch_of(self._settings, job) for job in jobs if job.handle}
            statuses = launcher.statuses(asked) if asked else {}
        except LauncherUnreachable as error:
            self._notice(name, jobs, str(error))
            statuses = None
        except StoreUnavailable:
            raise
        except Exception as error:  # what attempts and people say counts all the same
            LOG.exception("the launcher %s failed", name)
            self._notice(name, jobs, f"its launcher failed ({type(error).__name__})")
            statuses = None
        else:
            self._notice(name, jobs, "")
        for job in jobs:
            if statuses is None:
                self._tend(tender, job, None)
            elif not _is_to_launch(job):
                self._tend(tender, job, statuses.get(job.handle) or Status(state="absent"))

    def release(self) -> None:
        """Leave every job to other dispatchers.

        Raises:
            StoreUnavailable
        """
        with self._store.writing() as session:
            session.execute(
                update(Job).where(Job.lease == self.token).values(lease="", leased_until=None),
                execution_options={"synchronize_session": False},
            )

    # Loops

    def _follower(self, name: str) -> Callable[[], None]:
        return lambda: self.follow(name)

    def _repeat(self, work: Callable[[], None], stop: threading.Event, wake: threading.Event) -> None:
        while not stop.is_set():
            wake.clear()
            try:
                work()
            except StoreUnavailable as error:
                LOG.warning("%s", error)
            except Exception:  # whatever a plugin or a file did, the other jobs are to be looked after
                LOG.exception("a look at the jobs broke off")
            wake.wait(self._pace.interval)

    def _jobs(self, name: str) -> list[Job]:
        with self._store.reading() as session:
            large = [defer(column) for column in (Job.recipe, Job.openai, Job.estimate, Job.labels)]
            mine = select(Job).options(*large)
            mine = mine.where(Job.lease == self.token, Job.launcher == name, Job.state.in_(ON_A_MACHINE))
            return list(session.scalars(mine.order_by(Job.priority.desc(), Job.created_at)))

    def _launch(self, tender: Tender, jobs: list[Job]) -> None:
        until = time.monotonic() + self._pace.launching
        for job in jobs:
            if time.monotonic() > until:
                return
            fresh = (job.id, job.attempt) in self._fresh
            self._fresh.discard((job.id, job.attempt))
            try:
                tender.launch(job, fresh)
            except NotMine:
                continue
            except LauncherUnreachable as error:  # busy, or away; the others' statuses will show which
                LOG.warning("%s can't be launched now: %s", job.id, error)
                return
            except OSError as error:  # a full disk, say; it starts when there is room
                LOG.warning("%s can't be launched now: %s", job.id, error)

    def _find(self, tender: Tender, jobs: list[Job]) -> None:
        for job in jobs:
            try:
                tender.find(job)
            except NotMine:
                continue
            except (LauncherUnreachable, StoreUnavailable):
                raise
            except Exception:  # the other jobs are to be looked after
                LOG.exception("%s can't be looked for now", job.id)

    def _tend(self, tender: Tender, job: Job, status: Status | None) -> None:
        try:
            tender.tend(job, status)
        except (NotMine, LauncherUnreachable):
            return
        except StoreUnavailable:
            raise
        except Exception:  # the other jobs are to be looked after
            LOG.exception("%s can't be followed now", job.id)

    def _notice(self, name: str, jobs: list[Job], trouble: str) -> None:
        """Tell every job once that its cluster can't be asked, and once that it answers again."""
        if bool(trouble) == (name in self._unreachable):
            return
        text = f"{name} answers again"
        if trouble:
            text = f"{name} can't be asked now, and this job is left as it is: {trouble}"
        with self._store.writing() as session:
            for job in jobs:
                locked = lock_job(session, job.id)
                if locked is not None and locked.lease == self.token:
                    append_event(session, locked, "notice", {"text": text})
        (self._unreachable.add if trouble else self._unreachable.discard)(name)

    def _sees(self, job_id: str) -> bool:
        return job_folder(self._settings, job_id).is_dir()


def _is_to_launch(job: Job) -> bool:
    return job.state == STARTING and job.wanted == "run" and not job.handle
