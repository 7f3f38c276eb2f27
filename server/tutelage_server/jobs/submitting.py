"""Takes jobs in: everything that can be known is checked first, then the job and its folder appear together.

The folder is written beside (`jobs/.ID.new`) and gets its name before the row is committed. So every job has its
folder, and what a crash leaves is a folder without a job (`folders.forget_unborn`), never a job without its folder.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage._yaml import dump
from tutelage.errors import Problem, TutelageError
from tutelage.launcher import Launcher
from tutelage.plugins import Host, host
from tutelage.recipe import mappings, resolve
from tutelage.references import renamed
from tutelage.runs.files import sync_folder, write_atomically
from tutelage_server.accounts.caller import Caller
from tutelage_server.accounts.idempotency import Answer, once
from tutelage_server.accounts.limits import check_job_quota, limits_of
from tutelage_server.accounts.usage import add_usage
from tutelage_server.files.storage import place_file
from tutelage_server.jobs.checking import Ask, Checked, Checker, digest_of, hardware_of
from tutelage_server.jobs.confining import Confined, Confiner, check_after, check_environment
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.folders import share_file, write_secrets
from tutelage_server.jobs.launching import SECRETS, job_folder, make_launchers
from tutelage_server.jobs.reviving import copy_run
from tutelage_server.jobs.schemas import Plan, Submission, Sweep, show_job
from tutelage_server.jobs.states import CANCELLED, FAILED, QUEUED
from tutelage_server.jobs.sweeping import covering, expand
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Job, StoredFile, Tenant, new_id

RECIPE = "recipe.yaml"
_CHECKED, _ESTIMATED = ".checked.yaml", ".estimated.yaml"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,63}")


class Draft(msgspec.Struct, kw_only=True):
    """A job that isn't one yet."""

    id: str
    recipe: dict[str, Any]
    "As it was submitted."
    confined: Confined
    checked: Checked = msgspec.field(default_factory=Checked)


class Drafts(msgspec.Struct, kw_only=True):
    """What a submission would become."""

    launcher: str
    drafts: list[Draft]
    problems: list[Problem]
    notes: list[str]
    usd: float | None
    "The most that one of them may cost; None when that is not known."


class Submitting:
    """Takes submissions in."""

    def __init__(
        self, settings: Settings, store: Store, checker: Checker, launchers: dict[str, Launcher] | None = None
    ) -> None:
        """`launchers` are made from the settings where none are given."""
        self._settings, self._store, self._checker = settings, store, checker
        self._launchers = make_launchers(settings) if launchers is None else launchers
        self._host: Host = host()
        self._jobs = settings.folder / "jobs"

    def plan(self, caller: Caller, submission: Submission) -> Plan:
        """Say what would become of a submission.

        Raises:
            StoreUnavailable
        """
        with self._drafted(caller, submission) as made:
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
        with self._drafted(caller, submission) as made:
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
        with self._store.reading() as session:
            old = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == caller.tenant_id)).one_or_none()
        if old is None:
            raise no_job(job_id)
        if old.state not in (FAILED, CANCELLED):
            wrong = f"is {old.state}, and what failed or was cancelled can be tried again"
            raise refused(409, job_id, wrong, code="state_conflict")
        fresh = _again(old, new_id("job"), caller)
        usd = (old.estimate or {}).get("max_usd")
        fresh.usd = usd or 0.0
        staging = self._staging(fresh.id)
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
            self._staging(each).rename(self._jobs / each)
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

    def _staging(self, job_id: str) -> Path:
        return self._jobs / f".{job_id}.new"

    @contextlib.contextmanager
    def _drafted(self, caller: Caller, submission: Submission) -> Iterator[Drafts]:
        """Confine and check; the folders beside are there until the block ends."""
        launcher = submission.launcher or next(iter(self._launchers), "")
        made = Drafts(launcher=launcher, drafts=[], problems=self._settled(submission, launcher), notes=[], usd=None)
        try:
            recipes = expand(submission.recipe, submission.sweep)
            with self._store.reading() as session:
                made.problems += check_after(session, caller.tenant_id, submission.after)
                confiner = Confiner(session, self._settings, caller.tenant_id, self._host)
                self._confine(confiner, recipes, made)
                stored = self._stored(session, made.drafts)
        except TutelageError as error:
            if isinstance(error, StoreUnavailable):
                raise
            made.problems += error.problems
            yield made
            return
        try:
            if made.drafts:
                self._check(submission, made, stored)
            yield made
        finally:
            for draft in made.drafts:
                shutil.rmtree(self._staging(draft.id), ignore_errors=True)

    def _settled(self, submission: Submission, launcher: str) -> list[Problem]:
        """What is wrong with all but the recipe."""
        problems = check_environment(self._settings, submission.environment, "environment")
        problems += check_environment(self._settings, submission.secrets, "secrets")
        for name in submission.environment.keys() & submission.secrets.keys():
            problems.append(Problem(place=f"secrets.{name}", wrong="is in environment too", fix="give it once"))
        for name, value in submission.labels.items():
            if not _LABEL.fullmatch(name) or len(value) > 512:
                fix = "use letters, digits and _ . / - for names (64), and at most 512 characters for values"
                problems.append(Problem(place=f"labels.{name[:64]}", wrong="can't be a label", fix=fix))
        if launcher not in self._launchers:
            known = ", ".join(self._launchers) or "none"
            problems.append(
                Problem(place="launcher", wrong=f"there is no launcher {launcher!r}", fix=f"known: {known}")
            )
        else:
            problems += self._launchers[launcher].problems(submission.resources)
        return problems

    def _confine(self, confiner: Confiner, recipes: list[dict[str, Any]], made: Drafts) -> None:
        for recipe in recipes:
            try:
                made.drafts.append(Draft(id=new_id("job"), recipe=recipe, confined=confiner.confine(recipe)))
            except TutelageError as error:
                made.problems += _new(error.problems, made.problems)
                with contextlib.suppress(TutelageError):
                    made.problems += _new(_invalid(recipe, self._host), made.problems)
        if made.problems:
            made.drafts = []

    def _stored(self, session: Session, drafts: list[Draft]) -> dict[str, StoredFile]:
        """The rows of all files that drafts name."""
        wanted = {each for draft in drafts for each in draft.confined.files.values()}
        return {each.id: each for each in session.scalars(select(StoredFile).where(StoredFile.id.in_(wanted)))}

    def _check(self, submission: Submission, made: Drafts, stored: dict[str, StoredFile]) -> None:
        """Write the folders and check recipes: of a sweep so many that every value of every field is among them."""
        for draft in made.drafts:
            self._write(draft, submission, stored, made.drafts[0])
        resources = submission.resources
        hardware = hardware_of(self._settings, resources.gpus, resources.nodes)
        for at in covering(submission.sweep):
            draft = made.drafts[at]
            self._ask(draft, hardware, stored)
            made.problems += _new(draft.checked.problems, made.problems)
            made.problems += _new(_devices(draft.recipe, resources.gpus), made.problems)
            made.notes += [note for note in draft.checked.notes if note not in made.notes]
        if len(made.drafts) > 1:
            checked = [made.drafts[at].checked for at in covering(submission.sweep)]
            dearest = max(checked, key=lambda each: each.highest_usd or 0.0)
            for at in set(range(len(made.drafts))) - set(covering(submission.sweep)):
                made.drafts[at].checked = dearest
        made.usd = self._highest(submission, made)

    def _write(self, draft: Draft, submission: Submission, stored: dict[str, StoredFile], first: Draft) -> None:
        """Write a job's folder beside: the recipe, its files, its secrets."""
        folder = self._staging(draft.id)
        folder.mkdir(parents=True, mode=0o700)
        confined = draft.confined
        (folder / "data").mkdir()
        for path, file_id in confined.files.items():
            if draft is not first and first.confined.files.get(path) == file_id:
                share_file(self._staging(first.id), folder, path)
            else:
                place_file(self._settings, stored[file_id], folder / path)
        write_atomically(folder / RECIPE, dump(confined.recipe).encode())
        if submission.secrets:
            write_secrets(folder / SECRETS, submission.secrets)
        for name, values in ((_CHECKED, confined.foreseen), (_ESTIMATED, {**confined.foreseen, **confined.shapes})):
            if values:
                (folder / name).write_text(dump(renamed(confined.recipe, values)), encoding="utf-8")
        sync_folder(folder)

    def _ask(self, draft: Draft, hardware: dict[str, Any], stored: dict[str, StoredFile]) -> None:
        folder, confined = self._staging(draft.id), draft.confined
        hashes = {path: stored[file_id].sha256 for path, file_id in confined.files.items()}
        others = [sorted(map(str, confined.foreseen.items())), sorted(map(str, confined.shapes.items()))]
        ask = Ask(
            folder=str(folder),
            recipe=_CHECKED if confined.foreseen else RECIPE,
            estimated=_ESTIMATED if confined.foreseen or confined.shapes else RECIPE,
            hardware=hardware,
        )
        draft.checked = self._checker.check(ask, digest_of(confined.recipe, hashes, hardware, others))
        for name in (_CHECKED, _ESTIMATED):
            (folder / name).unlink(missing_ok=True)

    def _highest(self, submission: Submission, made: Drafts) -> float | None:
        """The most that one job may cost: what is likely at most, or what its time limit lets it."""
        found = [draft.checked.highest_usd for draft in made.drafts]
        known = [usd for usd in found if usd is not None]
        likely = max(known) if known and len(known) == len(found) else None
        resources, hourly = submission.resources, self._settings.hourly_usd
        if resources.minutes is None or hourly is None:
            return likely
        limit = resources.minutes / 60 * resources.nodes * max(1, resources.gpus) * hourly
        return limit if likely is None else min(likely, limit)

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
            estimate = {**(estimate or {}), "max_usd": made.usd}
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


def _invalid(recipe: dict[str, Any], host: Host) -> list[Problem]:
    """What is wrong with a recipe's settings, told beside what it may not name."""
    try:
        resolve(recipe, Path(), host)
    except TutelageError as error:
        return error.problems
    return []


def _devices(recipe: dict[str, Any], gpus: int) -> list[Problem]:
    """Stages that want other devices than the job asks for."""
    problems = []
    for index, stage in enumerate(mappings(recipe.get("stages"))):
        trainer = stage.get("trainer")
        place = f"stages.{stage.get('name', index)}.trainer"
        trainer = trainer if isinstance(trainer, dict) else {}
        if trainer.get("accelerator") == "cuda" and not gpus:
            fix = "ask for some: resources.gpus (--gpus), or use accelerator: auto"
            problems.append(
                Problem(place=f"{place}.accelerator", wrong="is cuda, and the job asks for no GPU", fix=fix)
            )
        count = trainer.get("devices")
        if isinstance(count, int) and gpus and count > gpus and trainer.get("accelerator") != "cpu":
            wrong = f"is {count}, and the job asks for {gpus} GPUs of each machine"
            problems.append(Problem(place=f"{place}.devices", wrong=wrong, fix="ask for more, or use devices: auto"))
    return problems


def _new(found: list[Problem], known: list[Problem]) -> list[Problem]:
    return [problem for problem in found if problem not in known]
