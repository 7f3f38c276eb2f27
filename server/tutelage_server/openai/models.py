"""`/openai/v1/models`: what can be asked. Bases are the operator's; what a tenant's jobs made is the tenant's."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from anyio.to_thread import run_sync
from litestar import delete, get
from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.errors import TutelageError
from tutelage.models.locating import run_artifact
from tutelage_server.accounts.caller import requires
from tutelage_server.jobs.states import SUCCEEDED
from tutelage_server.openai.parameters import Calling, Id, TheSettings, TheStore
from tutelage_server.openai.recipes import STAGE
from tutelage_server.openai.schemas import Deleted, Model, OpenAIModelPage
from tutelage_server.openai.views import base_models, run_folder, short_id, show_model, tuned_name
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, lock_job
from tutelage_server.store.tables import Job, now

_CHECKPOINT = ":ckpt-step-"


class Found(msgspec.Struct, frozen=True):
    """A model that can be asked: what a recipe's `model` would be, and the folder of a checkpoint or ''."""

    reference: str
    checkpoint: str = ""


def find_model(store: Store, settings: Settings, tenant_id: str, name: str) -> Found:
    """The model of a name.

    Raises:
        Refused: 404 when there is none, or it is another tenant's.
    """
    if name in settings.openai_models:
        return Found(settings.openai_models[name])
    tuned, _, step = name.partition(_CHECKPOINT)
    with store.reading() as session:
        job = _job_of(session, tenant_id, tuned)
    run = run_folder(settings, job.id)
    try:
        artifact = str(run_artifact(run, STAGE, "model"))
    except TutelageError:
        raise unknown_model(name) from None
    if not step:
        return Found(artifact)
    checkpoint = run / "stages" / STAGE / "checkpoints" / f"step-{step:0>8}"
    if not (step.isascii() and step.isdigit() and checkpoint.is_dir()):
        raise unknown_model(name)
    return Found(artifact, str(checkpoint))


def unknown_model(name: str) -> Refused:
    """No such model, for all that this caller may know."""
    wrong = f"The model '{name[:200]}' does not exist or you do not have access to it."
    return refused(404, "", wrong, code="model_not_found")


@get("/models", guards=[requires("read")], sync_to_thread=True)
def list_models(request: Calling, store: TheStore, settings: TheSettings) -> OpenAIModelPage:
    """All models: those that can be tuned, then what this tenant's jobs made, newest first."""
    mine = select(Job).where(Job.tenant_id == request.user.tenant_id, Job.state == SUCCEEDED, Job.openai.is_not(None))
    with store.reading() as session:
        jobs = [job for job in session.scalars(mine.order_by(Job.id.desc())) if _is_kept(job)]
    return OpenAIModelPage(data=[*base_models(settings), *map(show_model, jobs)])


@get("/models/{model:str}", guards=[requires("read")], sync_to_thread=True)
def retrieve_model(
    request: Calling,
    store: TheStore,
    settings: TheSettings,
    model: Id,
) -> Model:
    """A model."""
    if found := next((each for each in base_models(settings) if each.id == model), None):
        return found
    with store.reading() as session:
        return show_model(_job_of(session, request.user.tenant_id, model))


@delete("/models/{model:str}", guards=[requires("submit")], status_code=200)
async def delete_model(
    request: Calling,
    store: TheStore,
    settings: TheSettings,
    model: Id,
) -> Deleted:
    """Delete what a job made: its weights and its checkpoints. The job's record and figures stay."""
    job_id = await run_sync(_delete, store, settings, request.user.tenant_id, model)
    run = run_folder(settings, job_id)
    await request.app.state.answerers.forget(run)
    await run_sync(_remove, run)
    return Deleted(id=model, object="model")


def _delete(store: Store, settings: Settings, tenant_id: str, name: str) -> str:
    if name in settings.openai_models:
        fix = "ask the operator, whose setting openai_models names it"
        raise refused(403, "model", f"{name} is the operator's and can't be deleted", fix, code="base_model")
    with store.writing() as session:
        job = _job_of(session, tenant_id, name)
        job = lock_job(session, job.id, tenant_id) or job
        job.openai = {**(job.openai or {}), "model_deleted": now().isoformat()}
        return job.id


def _remove(run: Path) -> None:
    stage = run / "stages" / STAGE
    for folder in ("checkpoints", "adapter", "model"):
        shutil.rmtree(stage / folder, ignore_errors=True)


def _job_of(session: Session, tenant_id: str, name: str) -> Job:
    """The job that made a model.

    Raises:
        Refused: 404
    """
    short = name.rpartition(":")[2]
    if name.startswith("ft:") and len(short) == len(short_id("0" * 32)) and short.isalnum():
        wanted = select(Job).where(Job.tenant_id == tenant_id, Job.state == SUCCEEDED, Job.openai.is_not(None))
        for job in session.scalars(wanted.where(Job.id.endswith(short, autoescape=True))):
            if tuned_name(job) == name and _is_kept(job):
                return job
    raise unknown_model(name)


def _is_kept(job: Job) -> bool:
    return not (job.openai or {}).get("model_deleted")
