"""Confines a recipe to what its tenant may read: everything that it names becomes a path in or beside the job's folder.

What may be named is a closed list (`file:ID`, `job:ID`, `stage:NAME`, `starter:NAME`, `new`, and hub names where the
operator allows them); no path, address or name of any other kind gets through, so there is nothing to be normalised.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.config import read_file
from tutelage.errors import Problem, TutelageError
from tutelage.models.locating import run_artifact
from tutelage.plugins import Host
from tutelage.recipe import resolve
from tutelage.references import Named, PluginUse, Reference, Step, named_in, renamed
from tutelage_server.jobs.launching import job_folder
from tutelage_server.jobs.states import SUCCEEDED, TERMINAL
from tutelage_server.settings import Settings
from tutelage_server.store.tables import Job, StoredFile, now

DATA = "data"
"The folder, in the job's, of the files that its recipe names."

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_FILE = re.compile(r"file:([A-Za-z0-9-]{1,64})")
_JOB = re.compile(rf"job:([A-Za-z0-9-]{{1,64}})(?:/({_NAME}))?")
_STAGE = re.compile(rf"stage:{_NAME}")
_STARTER = re.compile(rf"starter:{_NAME}")
_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_HUB_DATA = re.compile(rf"hub:{_HUB.pattern}(?::[A-Za-z0-9_.+-]{{1,100}})?")
_OWN = ("data", "run", "attempts")
"Folders of a job, which no owner on the hub is taken for."
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_DATASET = "data.jsonl"


class Confined(msgspec.Struct, kw_only=True):
    """A recipe that names nothing outside, and what its folder must hold."""

    recipe: dict[str, Any]
    files: dict[str, str] = {}
    "Ids of stored files by their paths in the job's folder."
    after: list[str] = []
    "Jobs whose models it starts from and that have not ended."
    foreseen: dict[tuple[Step, ...], str] = {}
    "For checks: models of the same shape, instead of those that other jobs will make."
    shapes: dict[tuple[Step, ...], str] = {}
    "For estimates: base models, instead of what other jobs made of them."


class Confiner:
    """Confines the recipes of a tenant, in a session that reads."""

    def __init__(self, session: Session, settings: Settings, tenant_id: str, host: Host) -> None:
        self._session, self._settings, self._tenant, self._host = session, settings, tenant_id, host

    def confine(self, recipe: Mapping[str, Any]) -> Confined:
        """Rewrite what a recipe names.

        Raises:
            TutelageError: with everything that it may not name or use, each at its place.
        """
        named = named_in(recipe, self._host)
        problems = [problem for use in named.plugins if (problem := self._denied(use))]
        found = Confined(recipe={})
        values: dict[tuple[Step, ...], str] = {}
        for reference in named.references:
            try:
                values[reference.path] = self._value(reference, found)
            except TutelageError as error:
                problems += error.problems
        if problems:
            raise TutelageError(problems)
        found.recipe = renamed(recipe, values)
        self._confirm(found.recipe, named, values)
        return found

    def _denied(self, use: PluginUse) -> Problem | None:
        if f"{use.kind}:{use.name}" not in self._settings.deny_plugins:
            return None
        return Problem(place=use.place, wrong=f"the {use.kind} {use.name} may not be used on this server", fix=_ASK)

    def _value(self, reference: Reference, found: Confined) -> str:
        kind, value, place = reference.kind, reference.value, reference.place
        if kind == "output":
            raise TutelageError.at(place, "is written by the job, whose folder is the server's choice", "leave it out")
        if match := _FILE.fullmatch(value):
            return self._file(match[1], reference, found)
        if kind == "file":
            raise TutelageError.at(place, f"{value!r} is no file of yours", "upload it, and write file:ID")
        if match := _JOB.fullmatch(value):
            return self._job(match[1], match[2] or "", reference, found)
        if kind == "model" and value in self._settings.openai_models.values():
            return value  # the operator named it
        if _STAGE.fullmatch(value) or (kind == "model" and (value == "new" or _STARTER.fullmatch(value))):
            return value
        if (_HUB if kind == "model" else _HUB_DATA).fullmatch(value) and value.partition("/")[0] not in _OWN:
            if self._settings.allow_hub:
                return value
            wrong = f"{value} is of the hub, which jobs of this server may not use"
            raise TutelageError.at(place, wrong, f"upload it and write file:ID, or {_ASK}")
        known = "file:ID, job:ID, stage:NAME" + (", starter:NAME" if kind == "model" else "")
        raise TutelageError.at(place, f"{value!r} is nothing that a job may name", f"upload it, and write {known}")

    def _file(self, file_id: str, reference: Reference, found: Confined) -> str:
        place = reference.place
        row = self._session.get(StoredFile, file_id)
        if row is None or row.tenant_id != self._tenant or (row.expires_at and row.expires_at <= now()):
            raise TutelageError.at(place, f"no file of yours is called {file_id}", "see /v1/files, or upload it")
        if row.status != "processed":
            wrong = f"the file {file_id} ({row.name}) is not all there: {row.received} of {row.bytes} bytes"
            raise TutelageError.at(place, wrong, "go on with its upload")
        if reference.kind == "model" and not row.name.lower().endswith(".gguf"):
            raise TutelageError.at(place, f"{row.name} is not a model", "a model in one file is a .gguf file")
        for path, held in found.files.items():
            if held == file_id:
                return path
        path = _free(row.name, found.files)
        found.files[path] = file_id
        return path

    def _job(self, job_id: str, stage: str, reference: Reference, found: Confined) -> str:
        place = reference.place
        job = self._session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == self._tenant)).one_or_none()
        if job is None:
            raise TutelageError.at(place, f"no job of yours is called {job_id}", "see /v1/jobs")
        beside = f"../{job.id}/run"
        if reference.kind == "data":
            return self._data_of(job, stage, place)
        root = self._root(job.id)
        if root:
            found.shapes[reference.path] = root
        try:
            artifact = run_artifact(job_folder(self._settings, job.id) / "run", stage, place)
        except TutelageError:
            if job.state in TERMINAL:
                what = f"the stage {stage} of {job.id}" if stage else job.id
                raise TutelageError.at(place, f"{what} has made no model (the job {job.state})", job.reason) from None
        else:
            return f"../{job.id}/{artifact.relative_to(job_folder(self._settings, job.id).resolve())}"
        names = [str(each.get("name")) for each in job.recipe.get("stages", []) if isinstance(each, dict)]
        if stage and stage not in names:
            raise TutelageError.at(place, f"{job.id} has no stage {stage}", f"it has {', '.join(names)}")
        found.after.append(job.id)
        if root:
            found.foreseen[reference.path] = root
        return f"{beside}/stages/{stage}/{self._made_by(job, stage)}" if stage else beside

    def _data_of(self, job: Job, stage: str, place: str) -> str:
        if not stage:
            raise TutelageError.at(
                place, f"says not which stage of {job.id} made the data", f"write job:{job.id}/STAGE"
            )
        folder = job_folder(self._settings, job.id)
        try:
            data = run_artifact(folder / "run", stage, place) / _DATASET
        except TutelageError:
            data = None
        if data is None or not data.is_file() or data.is_symlink():
            wrong = f"the stage {stage} of {job.id} has made no data" + ("" if job.state in TERMINAL else " yet")
            fix = "" if job.state in TERMINAL else "wait until it has"
            raise TutelageError.at(place, wrong, fix)
        return f"../{job.id}/{data.relative_to(folder)}"

    def _made_by(self, job: Job, stage: str) -> str:
        """The folder in which a stage that has not ended will leave its model."""
        resolved = resolve(read_file(job_folder(self._settings, job.id) / "recipe.yaml"), Path(), self._host)
        return resolved.adapters[stage].artifact

    def _root(self, job_id: str, depth: int = 10) -> str:
        """The model that a job began with, as other jobs' folders see it; '' when that can't be told."""
        try:
            model = str(read_file(job_folder(self._settings, job_id) / "recipe.yaml").get("model", ""))
        except (TutelageError, AttributeError):
            return ""
        if model.startswith("../"):
            return self._root(model.split("/")[1], depth - 1) if depth else ""
        return f"../{job_id}/{model}" if model.startswith(f"{DATA}/") else model

    def _confirm(self, recipe: dict[str, Any], named: Named, values: dict[tuple[Step, ...], str]) -> None:
        """Refuse what only shows when the plugins' settings are read: defaults that are denied, and what a plugin
        says that it will read without having marked the setting that names it."""
        try:
            resolved = resolve(recipe, Path(), self._host)
        except TutelageError:
            return  # the check tells of that, and such a recipe is never run
        used = [("tracker", "trackers", tracker.name) for tracker in resolved.trackers]
        problems: list[Problem] = []
        for name, phase in resolved.phases.items():
            used += [("adapter", f"stages.{name}.adapter", resolved.adapters[name].name)]
            read = {**phase.references(), **{field: source for field, (source, _) in phase.sources().items()}}
            for field, value in read.items():
                if value and value not in values.values():
                    wrong = f"{value!r} is read by the phase {phase.name}, which has not marked what it reads"
                    problems.append(Problem(place=f"stages.{name}.phase.{field}", wrong=wrong, fix=_ASK))
        known = {use.place.removesuffix(".kind") for use in named.plugins}
        for kind, place, plugin in used:
            if place not in known and (problem := self._denied(PluginUse(place=place, kind=kind, name=plugin))):
                problems.append(problem)
        if problems:
            raise TutelageError(problems)


def check_environment(settings: Settings, environment: Mapping[str, str], place: str) -> list[Problem]:
    """What of a job's variables may not be set: most others could make its programs run something else."""
    problems = []
    for name, value in environment.items():
        here = f"{place}.{name[:100]}"
        if not _VARIABLE.fullmatch(name):
            problems.append(Problem(place=here, wrong="is no name of a variable", fix="use letters, digits and _"))
        elif name.upper().startswith("TUTELAGE_") or not any(
            fnmatch.fnmatchcase(name, pattern) for pattern in settings.allow_environment
        ):
            allowed = ", ".join(settings.allow_environment) or "none"
            problems.append(Problem(place=here, wrong="may not be set on this server", fix=f"allowed are {allowed}"))
        elif "\0" in value or len(value) > 32_768:
            problems.append(Problem(place=here, wrong="has a value that no variable can have", fix="shorten it"))
    return problems


def check_after(session: Session, tenant_id: str, after: list[str]) -> list[Problem]:
    """What is wrong with the jobs that a job is to come after."""
    found = session.execute(select(Job.id, Job.state).where(Job.id.in_(after), Job.tenant_id == tenant_id))
    states = {row.id: row.state for row in found}
    problems = []
    for index, job_id in enumerate(after):
        place = f"after.{index}"
        if job_id not in states:
            problems.append(Problem(place=place, wrong=f"no job of yours is called {job_id}", fix="see /v1/jobs"))
        elif states[job_id] in TERMINAL - {SUCCEEDED}:
            problems.append(Problem(place=place, wrong=f"{job_id} has {states[job_id]}", fix="leave it out"))
    return problems


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """A path in the job's folder for a file: its own name, but for characters that mean something somewhere."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(name).name).lstrip(".-")[-100:].lstrip(".-") or "file"
    path, count = f"{DATA}/{plain}", 1
    while path.lower() in {each.lower() for each in taken}:
        count += 1
        path = f"{DATA}/{count}-{plain}"
    return path


_ASK = "ask the server's operator"
