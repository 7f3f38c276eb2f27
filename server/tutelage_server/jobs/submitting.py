"""Takes jobs in: everything that can be known is checked first, then the job and its folder appear together.

The folder is written beside (`jobs/.ID.new`) and gets its name before the row is committed. So every job has its
folder, and what a crash leaves is a folder without a job (`folders.forget_unborn`), never a job without its folder.
"""

from __future__ import annotations

import shutil
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.errors import TutelageError
from tutelage.launcher import Launcher
from tutelage.runs.files import sync_folder
from tutelage_server.accounts.caller import Caller
from tutelage_server.accounts.idempotency import Answer, once
from tutelage_server.accounts.limits import check_job_quota, limits_of
from tutelage_server.accounts.usage import add_usage
from tutelage_server.jobs.checking import Checker
from tutelage_server.jobs.drafting import RECIPE, Drafting, Drafts
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.folders import staging_folder
from tutelage_server.jobs.launching import job_folder, make_launchers
from tutelage_server.jobs.reviving import copy_run
from tutelage_server.jobs.schemas import Plan, Submission, Sweep, show_job
from tutelage_server.jobs.states import CANCELLED, FAILED, QUEUED
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Job, Tenant, new_id


class Submitting:
    """Takes submissions in."""

    def __init__(
        self, settings: Settings, store: Store, checker: Checker, launchers: dict[str, Launcher] | None = None
    ) -> None:
        """`launchers` are made from the settings where none are given."""
        self._settings, self._store = settings, store
        self._launchers = make_launchers(settings) if launchers is None else launchers
        self.drafting = Drafting(settings, store, checker, self._launchers)
        self._jobs = settings.folder / "jobs"

    def plan(self, caller: Caller, submission: Submission) -> Plan:
        """Say what would become of a submission.

        Raises:
            StoreUnavailable
        """
        with self.drafting.drafted(caller.tenant_id, submission) as made:
            problems = list(made.problems)
            if not problems:
                try:
                    with self._store.reading() as session:
                        self._afford(session, caller, submission, made)
                except Refused as refusal:
                    problems += refusal.problems
            dearest = max(made.drafts, key=lambda draft: draft.checked.highest_usd or 0.0, default=None)
            return Plan(
                problems=problems,
                notes=made.notes,
                estimate=dearest.checked.estimate if dearest else None,
                data=dearest.checked.data if dearest else {},
                jobs=len(made.drafts),
                max_usd=made.usd,
                launcher=made.launcher,
            )

    def submit(
        self,
        caller: Caller,
        submission: Submission,
        key: str | None = None,
        body: str = "",
        openai: dict[str, Any] | None = None,
    ) -> Answer:
        """Make the job, or the jobs of a sweep, once for each idempotency key; the answer's body is a job or a sweep.

        Args:
            key, body: as `accounts.idempotency.once` takes them.
            openai: what an OpenAI client asked for.
        Raises:
            Refused: 402 when it may cost too much, 403 when something is not allowed.
            TutelageError: with everything that is to be mended, at its place.
        """
        if (before := self._answered(caller, key, body)) is not None:
            return before
        with self.drafting.drafted(caller.tenant_id, submission) as made:
            if made.problems:
                raise TutelageError(made.problems)

            def make(session: Session) -> tuple[int, dict[str, Any]]:
                session.get(Tenant, caller.tenant_id, with_for_update=True)  # one decides on a tenant's quota at a time
                self._afford(session, caller, submission, made)
                sweep = new_id("sweep") if submission.sweep else ""
                jobs = [self._job(caller, submission, made, at, sweep, openai) for at in range(len(made.drafts))]
                self._insert(session, caller, jobs)
                if sweep:
                    return 201, msgspec.to_builtins(Sweep(sweep=sweep, jobs=[show_job(job) for job in jobs]))
                return 201, msgspec.to_builtins(show_job(jobs[0], recipe=True))

            return self._born([draft.id for draft in made.drafts], caller, key, body, make)

    def retry(self, caller: Caller, job_id: str, key: str | None = None, body: str = "") -> Answer:
        """Make a new job of one that failed or was cancelled; it goes on from what that one saved.

        Raises:
            Refused: 404, 409, 402 or 403.
        """
        if (before := self._answered(caller, key, body)) is not None:
            return before
        old = self._ended(caller, job_id)
        fresh = _again(old, new_id("job"), caller)
        usd = (old.estimate or {}).get("max_usd")
        fresh.usd = usd or 0.0
        staging = staging_folder(self._settings, fresh.id)
        try:
            staging.mkdir(parents=True, mode=0o700)
            fresh.run_offset = copy_run(
                job_folder(self._settings, old.id), staging, job_folder(self._settings, fresh.id)
            )
            sync_folder(staging)

            def make(session: Session) -> tuple[int, dict[str, Any]]:
                session.get(Tenant, caller.tenant_id, with_for_update=True)
                check_job_quota(session, self._settings.limits, caller.tenant_id, usd)
                self._insert(session, caller, [fresh])
                return 201, msgspec.to_builtins(show_job(fresh, recipe=True))

            return self._born([fresh.id], caller, key, body, make)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _ended(self, caller: Caller, job_id: str) -> Job:
        """A job that can be tried again."""
        with self._store.reading() as session:
            old = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == caller.tenant_id)).one_or_none()
        if old is None:
            raise no_job(job_id)
        if old.state not in (FAILED, CANCELLED):
            wrong = f"is {old.state}, and what failed or was cancelled can be tried again"
            raise refused(409, job_id, wrong, code="state_conflict")
        if not (job_folder(self._settings, job_id) / RECIPE).is_file():
            wrong = "was refused before it could begin, so there is nothing that could be tried again"
            raise refused(409, job_id, wrong, f"submit a new one ({old.reason})", code="nothing_to_retry")
        if old.launcher not in self._launchers:
            wrong = f"ran on {old.launcher!r}, and there is no such launcher any more"
            raise refused(409, job_id, wrong, "submit it again, on another", code="nothing_to_retry")
        return old

    def _answered(self, caller: Caller, key: str | None, body: str) -> Answer | None:
        """The answer that the same request got before, so that nothing is checked for it again."""

        def make(_: Session) -> tuple[int, dict[str, Any]]:
            raise _NotYet

        try:
            return once(self._store, caller, key, body, make) if key else None
        except _NotYet:
            return None

    def _born(self, ids: list[str], caller: Caller, key: str | None, body: str, make: Any) -> Answer:
        """Give the folders their names, then commit; folders of jobs that did not come to be go away again."""
        for each in ids:
            staging_folder(self._settings, each).rename(self._jobs / each)
        sync_folder(self._jobs)
        try:
            answer = once(self._store, caller, key, body, make)
        except StoreUnavailable:
            raise  # it may have been committed: the folders stay, and `forget_unborn` will know
        except BaseException:
            self._forget(ids)
            raise
        if answer.replayed:
            self._forget(ids)
        return answer

    def _forget(self, ids: list[str]) -> None:
        for each in ids:
            shutil.rmtree(self._jobs / each, ignore_errors=True)

    def _afford(self, session: Session, caller: Caller, submission: Submission, made: Drafts) -> None:
        """Raises Refused, 402 or 403, for jobs that cost too much or are too many."""
        usd, limits = made.usd, limits_of(session, self._settings.limits, caller.tenant_id)
        if submission.max_usd is not None and usd is not None and usd > submission.max_usd:
            wrong = f"it may cost {usd:.2f} USD, and max_usd is {submission.max_usd:.2f}"
            raise refused(402, "max_usd", wrong, "make the job smaller, or raise max_usd", code="over_budget")
        limited = any(each is not None for each in (submission.max_usd, limits.job_usd, limits.month_usd))
        priced = self._settings.hourly_usd is not None or bool(self._settings.gpu and submission.resources.gpus)
        if usd is None and limited and priced:
            wrong = "what it may cost at most is not known, and there is a limit to it"
            raise refused(
                402, "resources.minutes", wrong, "set a time limit, which bounds the cost", code="cost_unknown"
            )
        check_job_quota(session, self._settings.limits, caller.tenant_id, usd, len(made.drafts))

    def _job(
        self, caller: Caller, submission: Submission, made: Drafts, at: int, sweep: str, openai: dict[str, Any] | None
    ) -> Job:
        draft = made.drafts[at]
        estimate = draft.checked.estimate
        if estimate is not None or made.usd is not None:
            limit = {} if submission.max_usd is None else {"limit_usd": submission.max_usd}
            estimate = {**(estimate or {}), "max_usd": made.usd, **limit}
        name = submission.name or str(draft.recipe.get("name", ""))
        return Job(
            id=draft.id,
            tenant_id=caller.tenant_id,
            key_id=caller.key_id,
            name=f"{name[:90]} {at + 1}" if sweep else name,
            state=QUEUED,
            recipe=draft.recipe,
            labels=submission.labels,
            openai=openai,
            launcher=made.launcher,
            resources=msgspec.to_builtins(submission.resources),
            environment=submission.environment,
            secrets=sorted(submission.secrets),
            priority=submission.priority,
            after=list(dict.fromkeys([*submission.after, *draft.confined.after])),
            sweep=sweep,
            sweep_index=at if sweep else None,
            max_retries=submission.max_retries,
            estimate=estimate,
            usd=made.usd or 0.0,
            **_BLANK,
        )

    def _insert(self, session: Session, caller: Caller, jobs: list[Job]) -> None:
        session.add_all(jobs)
        session.flush()
        for job in jobs:
            by = f"key:{caller.key_id}"
            append_event(session, job, "state", {"from": "", "to": QUEUED, "reason": "", "by": by})
        add_usage(session, caller.tenant_id, caller.key_id, jobs=len(jobs))


class _NotYet(Exception):
    """The same request has not been answered before."""


_BLANK: dict[str, Any] = {
    "reason": "",
    "ended_by": "",
    "wanted": "run",
    "machine": "",
    "devices": [],
    "retry_of": "",
    "attempt": 0,
    "retries": 0,
    "handle": "",
    "lease": "",
    "events": 0,
    "run_offset": 0,
    "progress": {},
    "spent_usd": 0.0,
}
"Of a job that has not begun: set here, since the answer is made of the row before the store fills in its defaults."


def _again(old: Job, job_id: str, caller: Caller) -> Job:
    """The row of a job that goes on with another's run."""
    fields = {
        **{
            name: getattr(old, name)
            for name in ("name", "recipe", "labels", "openai", "launcher", "resources", "after")
        },
        **{name: getattr(old, name) for name in ("environment", "secrets", "priority", "sweep", "sweep_index")},
        **{name: getattr(old, name) for name in ("max_retries", "estimate", "tenant_id")},
    }
    return Job(**{**_BLANK, **fields, "id": job_id, "key_id": caller.key_id, "state": QUEUED, "retry_of": old.id})


def no_job(job_id: str) -> Refused:
    """That there is no such job, or that it is another tenant's, which is the same to who asks."""
    return refused(404, "the job", f"no job of yours is called {job_id[:64]}", "see /v1/jobs", code="not_found")
