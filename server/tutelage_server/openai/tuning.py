"""`/openai/v1/fine_tuning/jobs`: jobs as OpenAI's clients know them, each one like any other."""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from litestar import get, post
from litestar.params import JSONBody
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from tutelage.errors import TutelageError
from tutelage_server.accounts.caller import Caller, requires
from tutelage_server.accounts.idempotency import body_hash, idempotency_key, once
from tutelage_server.jobs.confining import DATA
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.schemas import Submission
from tutelage_server.jobs.states import CANCELLED, FAILED, QUEUED, transition
from tutelage_server.jobs.steering import Verb, steer
from tutelage_server.jobs.submitting import Submitting
from tutelage_server.openai.files import lines_of, tunable_file
from tutelage_server.openai.parameters import After, Calling, Id, Limit, TheSettings, TheStore, TheSubmitting
from tutelage_server.openai.recipes import base_model, choose, hyperparameters_of, method_of, recipe_of
from tutelage_server.openai.schemas import (
    CheckpointPage,
    CreateJob,
    FineTuningEventPage,
    FineTuningJob,
    FineTuningJobPage,
)
from tutelage_server.openai.validating import Examples, Unfit, examine
from tutelage_server.openai.views import checkpoints_of, event_number, name_prefix, show_event, show_job
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Event, Idempotency, Job, StoredFile, Tenant, new_id, now

SAME_FOR = timedelta(minutes=10)
"How long an equal request is taken for the same one, sent again because its answer was lost."
_CREATING = 8
"Jobs that are taken in at a time: their recipes are checked, which takes long."


@post("/fine_tuning/jobs", guards=[requires("submit")], status_code=200)
async def create_job(
    request: Calling,
    store: TheStore,
    settings: TheSettings,
    submitting: TheSubmitting,
    data: JSONBody[CreateJob],
    body: bytes,
) -> FineTuningJob:
    """Tune a model. Files that can't be tuned with make a job that has failed and says why.

    The same request within ten minutes gets the same job, unless that has failed or was cancelled meanwhile; so an
    answer that was lost costs nothing. Change the suffix, the seed or the metadata to have another job.
    """
    digest = body_hash(request, body)
    key = idempotency_key(request) or f"openai {digest}"
    state = request.app.state
    state.tuning_limiter = state.get("tuning_limiter") or CapacityLimiter(_CREATING)
    work = functools.partial(_create, store, settings, submitting, request.user, data, key, digest)
    return await run_sync(work, limiter=state.tuning_limiter)


def _create(
    store: Store, settings: Settings, submitting: Submitting, caller: Caller, data: CreateJob, key: str, digest: str
) -> FineTuningJob:
    if (job_id := _known(store, caller, key, digest, expires=key.endswith(digest))) is not None:
        return _shown(store, settings, caller, job_id)
    method = method_of(data)
    base_model(data, settings)
    with store.reading() as session:
        files = {
            param: tunable_file(session, caller.tenant_id, file_id, param) for param, file_id in _files(data).items()
        }
        tenant = session.get_one(Tenant, caller.tenant_id).name
    seed = data.seed if data.seed is not None else int.from_bytes(os.urandom(4), "big")
    examples, unfit = _examine(settings, files, method)
    chosen = choose(hyperparameters_of(data), examples)
    recipe = recipe_of(data, method, chosen, examples, seed, settings)
    asked = {
        "prefix": name_prefix(data.model, tenant, data.suffix),
        "model": data.model,
        "training_file": data.training_file,
        "validation_file": data.validation_file,
        "method": method,
        "hyperparameters": msgspec.to_builtins(chosen),
        "seed": seed,
        "metadata": data.metadata,
        "integrations": msgspec.to_builtins(data.integrations),
    }
    submission = Submission(recipe=recipe, name=data.suffix or "fine-tune", resources=settings.openai_resources)
    if unfit is None:
        try:
            answer = submitting.submit(caller, submission, key, digest, openai=asked)
            return _shown(store, settings, caller, str(answer.body["id"]))
        except (Refused, StoreUnavailable):
            raise
        except TutelageError as error:
            unfit = _blamed(error, files)
    failed = _Failed(settings, caller, submission, {**asked, "error": unfit})
    return _shown(store, settings, caller, str(once(store, caller, key, digest, failed).body["id"]))


@get("/fine_tuning/jobs", guards=[requires("read")], sync_to_thread=True)
def list_jobs(
    request: Calling,
    store: TheStore,
    settings: TheSettings,
    limit: Limit = 20,
    after: After = None,
) -> FineTuningJobPage:
    """Fine-tuning jobs, newest first; `metadata[KEY]=VALUE` shows those that have it."""
    wanted = _mine(request.user).order_by(Job.id.desc()).limit(limit + 1)
    for name, value in request.query_params.items():
        if name.startswith("metadata[") and name.endswith("]"):
            wanted = wanted.where(Job.openai["metadata"][name[9:-1]].as_string() == value)
    if after is not None:
        wanted = wanted.where(Job.id < after)
    with store.reading() as session:
        found = list(session.scalars(wanted))
    data = [show_job(job, settings) for job in found[:limit]]
    return FineTuningJobPage(data=data, has_more=len(found) > limit)


@get("/fine_tuning/jobs/{job_id:str}", guards=[requires("read")], sync_to_thread=True)
def retrieve_job(request: Calling, store: TheStore, settings: TheSettings, job_id: Id) -> FineTuningJob:
    """A fine-tuning job."""
    return _shown(store, settings, request.user, job_id)


@post("/fine_tuning/jobs/{job_id:str}/cancel", guards=[requires("submit")], status_code=200, sync_to_thread=True)
def cancel_job(request: Calling, store: TheStore, settings: TheSettings, job_id: Id) -> FineTuningJob:
    """Cancel a job; what it saved stays."""
    return _steered(store, settings, request.user, job_id, "cancel")


@post("/fine_tuning/jobs/{job_id:str}/pause", guards=[requires("submit")], status_code=200, sync_to_thread=True)
def pause_job(request: Calling, store: TheStore, settings: TheSettings, job_id: Id) -> FineTuningJob:
    """Pause a job after it has saved a checkpoint."""
    return _steered(store, settings, request.user, job_id, "pause")


@post("/fine_tuning/jobs/{job_id:str}/resume", guards=[requires("submit")], status_code=200, sync_to_thread=True)
def resume_job(request: Calling, store: TheStore, settings: TheSettings, job_id: Id) -> FineTuningJob:
    """Let a paused job go on from its checkpoint."""
    return _steered(store, settings, request.user, job_id, "resume")


@get("/fine_tuning/jobs/{job_id:str}/events", guards=[requires("read")], sync_to_thread=True)
def list_events(
    request: Calling, store: TheStore, job_id: Id, limit: Limit = 20, after: After = None
) -> FineTuningEventPage:
    """What happened to a job, newest first."""
    with store.reading() as session:
        job = _job(session, request.user, job_id)
        wanted = select(Event).where(Event.job_id == job.id).order_by(Event.number.desc()).limit(limit + 1)
        if after is not None:
            wanted = wanted.where(Event.number < _number(after))
        found = list(session.scalars(wanted))
    return FineTuningEventPage(data=[show_event(event) for event in found[:limit]], has_more=len(found) > limit)


@get("/fine_tuning/jobs/{job_id:str}/checkpoints", guards=[requires("read")], sync_to_thread=True)
def list_checkpoints(
    request: Calling,
    store: TheStore,
    settings: TheSettings,
    job_id: Id,
    limit: Limit = 10,
    after: After = None,
) -> CheckpointPage:
    """The checkpoints of a job that are kept, newest first."""
    with store.reading() as session:
        job = _job(session, request.user, job_id)
    found = [each for each in checkpoints_of(job, settings) if after is None or each.id < after]
    data = found[:limit]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return CheckpointPage(data=data, has_more=len(found) > limit, first_id=ends[0], last_id=ends[1])


class _Failed:
    """Makes a job that has failed because its files can't be tuned with."""

    def __init__(self, settings: Settings, caller: Caller, submission: Submission, openai: dict[str, Any]) -> None:
        self._settings, self._caller, self._submission, self._openai = settings, caller, submission, openai

    def __call__(self, session: Session) -> tuple[int, dict[str, Any]]:
        job = Job(
            id=new_id("job"),
            tenant_id=self._caller.tenant_id,
            key_id=self._caller.key_id,
            name=self._submission.name,
            state=QUEUED,
            recipe=self._submission.recipe,
            openai=self._openai,
            launcher=next(iter(self._settings.launchers), ""),
            resources=msgspec.to_builtins(self._submission.resources),
        )
        session.add(job)
        session.flush()
        by = f"key:{self._caller.key_id}"
        append_event(session, job, "state", {"from": "", "to": QUEUED, "reason": "", "by": by})
        transition(session, job, FAILED, reason=self._openai["error"]["message"], by="check")
        return 200, {"id": job.id}


def _known(store: Store, caller: Caller, key: str, digest: str, *, expires: bool) -> str | None:
    """The id of the job that the same request made before.

    Args:
        expires: whether the key is made of the body, so that after some time, or when the job came to nothing, the
            same body means another job.
    """
    with store.reading() as session:
        row = session.get(Idempotency, (caller.tenant_id, key))
        if row is None or row.body != digest or not row.answer:
            return None
        job = session.get(Job, str(row.answer["id"]))
        if job is not None and not (
            expires and (row.created_at < now() - SAME_FOR or job.state in (FAILED, CANCELLED))
        ):
            return job.id
        made = row.created_at
    with store.writing() as session:
        row = session.get(Idempotency, (caller.tenant_id, key), with_for_update=True)
        if row is not None and row.created_at == made:
            session.delete(row)
    return None


def _files(data: CreateJob) -> dict[str, str]:
    files = {"training_file": data.training_file}
    return {**files, "validation_file": data.validation_file} if data.validation_file else files


def _examine(settings: Settings, files: dict[str, StoredFile], method: str) -> tuple[Examples, dict[str, str] | None]:
    """What the training file holds, and the first thing that is wrong with the files."""
    examples = Examples()
    try:
        for param, file in files.items():
            with lines_of(settings, file) as lines:
                found = examine(lines, method, param, **({} if param == "training_file" else {"least": 1}))
            examples = found if param == "training_file" else examples
    except Unfit as error:
        return examples, {"code": error.code, "message": error.message, "param": error.param}
    return examples, None


def _blamed(error: TutelageError, files: dict[str, StoredFile]) -> dict[str, str]:
    """The `error` of a job whose data can't be learnt from.

    Raises:
        TutelageError: again, when it is not the data that is to be mended.
    """

    def is_data(place: str) -> bool:
        return ".data" in place or place.startswith(f"{DATA}/") or place.endswith(".max_length")

    places = [problem.place for problem in error.problems]
    if not all(is_data(place) for place in places):
        raise error
    names = {param: file.name for param, file in files.items()}
    held_out = names.pop("validation_file", "")
    valid = held_out and all(
        ".data.eval" in place or (held_out in place and names["training_file"] not in place) for place in places
    )
    which = "validation" if valid else "training"
    message = f"The job failed due to an invalid {which} file. {error}"
    return {"code": f"invalid_{which}_file", "message": message, "param": f"{which}_file"}


def _mine(caller: Caller) -> Select[Job]:
    return select(Job).where(Job.tenant_id == caller.tenant_id, Job.openai.is_not(None))


def _job(session: Session, caller: Caller, job_id: str) -> Job:
    """Raises Refused, 404, when there is no such job of an OpenAI client's."""
    job = session.scalars(_mine(caller).where(Job.id == job_id)).one_or_none()
    if job is None:
        raise refused(404, "", f"Could not find fine tune: {job_id[:100]}", code="fine_tune_not_found")
    return job


def _shown(store: Store, settings: Settings, caller: Caller, job_id: str) -> FineTuningJob:
    with store.reading() as session:
        return show_job(_job(session, caller, job_id), settings)


def _steered(store: Store, settings: Settings, caller: Caller, job_id: str, verb: Verb) -> FineTuningJob:
    with store.reading() as session:
        _job(session, caller, job_id)
    steer(store, caller, job_id, verb)
    return _shown(store, settings, caller, job_id)


def _number(event_id: str) -> int:
    number = event_number(event_id)
    if number is None:
        raise refused(400, "after", "is no event's id", "give the id of the last event of a page", code="invalid_value")
    return number
