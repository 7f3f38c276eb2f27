"""Drafts of jobs: what a submission would become, confined and checked, its folders written beside (`jobs/.ID.new`)."""

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
from tutelage.launcher import Launcher, LauncherUnreachable
from tutelage.plugins import Host, host
from tutelage.recipe import mappings, resolve
from tutelage.references import renamed
from tutelage.runs.files import sync_folder, write_atomically
from tutelage_server.files.storage import place_file
from tutelage_server.jobs.checking import Ask, Checked, Checker, digest_of, hardware_of
from tutelage_server.jobs.confining import Confined, Confiner, check_after, check_environment
from tutelage_server.jobs.folders import share_file, staging_folder, write_secrets
from tutelage_server.jobs.launching import SECRETS
from tutelage_server.jobs.schemas import Submission
from tutelage_server.jobs.sweeping import covering, expand
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import StoredFile, new_id

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


class Drafting:
    """Makes drafts."""

    def __init__(self, settings: Settings, store: Store, checker: Checker, launchers: dict[str, Launcher]) -> None:
        self.checker = checker
        self._settings, self._store, self._launchers = settings, store, launchers
        self._host: Host = host()

    @contextlib.contextmanager
    def drafted(self, tenant_id: str, submission: Submission) -> Iterator[Drafts]:
        """Confine and check a tenant's submission; the folders beside are there until the block ends.

        Raises:
            Refused: 503 when the launcher's cluster can't be asked now whether it has what is asked for.
            StoreUnavailable
        """
        launcher = submission.launcher or next(iter(self._launchers), "")
        made = Drafts(launcher=launcher, drafts=[], problems=self._settled(submission, launcher), notes=[], usd=None)
        try:
            recipes = expand(submission.recipe, submission.sweep)
            with self._store.reading() as session:
                made.problems += check_after(session, tenant_id, submission.after)
                confiner = Confiner(session, self._settings, tenant_id, self._host)
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
                shutil.rmtree(staging_folder(self._settings, draft.id), ignore_errors=True)

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
            try:
                problems += self._launchers[launcher].problems(submission.resources)
            except LauncherUnreachable as error:
                wrong, headers = str(error.problems[0]), {"retry-after": "10"}
                raise refused(
                    503, launcher, wrong, "submit it again later", code="launcher_unreachable", headers=headers
                ) from None
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
        folder = staging_folder(self._settings, draft.id)
        folder.mkdir(parents=True, mode=0o700)
        confined = draft.confined
        (folder / "data").mkdir()
        for path, file_id in confined.files.items():
            if draft is not first and first.confined.files.get(path) == file_id:
                share_file(staging_folder(self._settings, first.id), folder, path)
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
        folder, confined = staging_folder(self._settings, draft.id), draft.confined
        hashes = {path: stored[file_id].sha256 for path, file_id in confined.files.items()}
        others = [sorted(map(str, confined.foreseen.items())), sorted(map(str, confined.shapes.items()))]
        ask = Ask(
            folder=str(folder),
            recipe=_CHECKED if confined.foreseen else RECIPE,
            estimated=_ESTIMATED if confined.foreseen or confined.shapes else RECIPE,
            hardware=hardware,
        )
        draft.checked = self.checker.check(ask, digest_of(confined.recipe, hashes, hardware, others))
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
