"""`/v1/jobs` and `/v1/compare`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import datetime
from io import BufferedReader
from typing import Annotated, Any

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, HeaderParameter, JSONBody, Parameter, QueryParameter
from litestar.response import Stream
from sqlalchemy import select

from tutelage_server.accounts.caller import Caller, requires
from tutelage_server.accounts.idempotency import Answer, body_hash, idempotency_key
from tutelage_server.files.downloads import Unsatisfiable, byte_range, download
from tutelage_server.jobs.artifacts import BLOCK, Run
from tutelage_server.jobs.events import events_after
from tutelage_server.jobs.figures import compare_jobs, metrics_of
from tutelage_server.jobs.logs import Log, log_bytes, log_stream
from tutelage_server.jobs.ranking import judge, next_question
from tutelage_server.jobs.schemas import (
    ArtifactPage,
    Compared,
    EventPage,
    JobPage,
    JobShown,
    Judgement,
    Metrics,
    Plan,
    RankingDesk,
    State,
    Submission,
    Sweep,
    show_event,
    show_job,
)
from tutelage_server.jobs.steering import steer
from tutelage_server.jobs.streaming import Feed, event_stream, streamed
from tutelage_server.jobs.submitting import Submitting, no_job
from tutelage_server.pages import page
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Job
from tutelage_server.times import in_utc

Asked = Request[Caller, Any, Any]
TheStore = NamedDependency[Store]
TheSettings = NamedDependency[Settings]
JobId = Annotated[FromPath[str], Parameter(max_length=64, description="The job's id.")]
Limit = Annotated[int, Parameter(ge=1, le=200, description="How many to show at most.")]
Cursor = Annotated[str | None, Parameter(max_length=1000, description="Where the page begins.")]
_TAGS = ["jobs"]
_SUBMITTING = 8
"Submissions that are checked at a time: the threads of all other requests are not theirs to wait in."


@post(
    "/v1/jobs", guards=[requires("submit")], tags=_TAGS, responses={200: ResponseSpec(Plan, description="A dry run.")}
)
async def submit_job(
    request: Asked, submitting: NamedDependency[Submitting], data: JSONBody[Submission]
) -> Response[JobShown | Sweep | Plan]:
    """Submit a job, or a sweep of several; with `dry_run`, learn what would become of it.

    It is checked as `tutelage check` does, confined to the tenant's files, and estimated, before it is accepted.
    """
    if data.dry_run:
        return Response(await _slowly(request, submitting.plan, request.user, data), status_code=200)
    body = body_hash(request, msgspec.json.encode(data))
    return _made(await _slowly(request, submitting.submit, request.user, data, idempotency_key(request), body))


@post("/v1/jobs/{job_id:str}/retry", guards=[requires("submit")], tags=_TAGS)
async def retry_job(request: Asked, submitting: NamedDependency[Submitting], job_id: JobId) -> Response[JobShown]:
    """Make a new job of one that failed or was cancelled, which goes on from its last checkpoint."""
    key, body = idempotency_key(request), body_hash(request, b"")
    return _made(await _slowly(request, submitting.retry, request.user, job_id, key, body))


@get("/v1/jobs", guards=[requires("read")], sync_to_thread=True, tags=_TAGS)
def list_jobs(
    request: Asked,
    store: TheStore,
    limit: Limit = 50,
    cursor: Annotated[str | None, Parameter(max_length=64, description="Where the page begins.")] = None,
    states: Annotated[
        list[State] | None, QueryParameter(name="state", description="Only jobs in these states.")
    ] = None,
    name: Annotated[str | None, Parameter(max_length=100, description="Only jobs of this name.")] = None,
    label: Annotated[
        list[str] | None,
        Parameter(max_items=10, description="Only jobs with all these labels, `NAME=VALUE` or `NAME`."),
    ] = None,
    sweep: Annotated[str | None, Parameter(max_length=64, description="Only jobs of this sweep.")] = None,
    created_after: Annotated[datetime | None, Parameter(description="Only jobs that were made later.")] = None,
) -> JobPage:
    """The tenant's jobs, newest first."""
    mine = select(Job).where(Job.tenant_id == request.user.tenant_id)
    if states:
        mine = mine.where(Job.state.in_(states))
    if name is not None:
        mine = mine.where(Job.name == name)
    if sweep is not None:
        mine = mine.where(Job.sweep == sweep)
    if created_after is not None:
        mine = mine.where(Job.created_at > in_utc(created_after, "created_after"))
    for each in label or []:
        key, equals, value = each.partition("=")
        if not key or set(key) & set('"\\'):
            raise refused(422, "label", f"{each[:100]!r} is no label", "write NAME=VALUE")
        found = Job.labels[key].as_string()
        mine = mine.where(found == value if equals else found.is_not(None))
    with store.reading() as session:
        rows, following = page(session, mine, Job.id, limit, cursor)
    return JobPage(items=[show_job(row) for row in rows], next=following)


@get("/v1/jobs/{job_id:str}", guards=[requires("read")], sync_to_thread=True, tags=_TAGS)
def show_one_job(request: Asked, store: TheStore, job_id: JobId) -> JobShown:
    """One job, with its recipe."""
    return show_job(_mine(store, request.user, job_id), recipe=True)


@post("/v1/jobs/{job_id:str}/cancel", guards=[requires("submit")], status_code=200, sync_to_thread=True, tags=_TAGS)
def cancel_job(request: Asked, store: TheStore, job_id: JobId) -> JobShown:
    """Cancel a job. Where it runs, it is stopped first; `wanted` tells so until then."""
    return show_job(steer(store, request.user, job_id, "cancel"), recipe=True)


@post("/v1/jobs/{job_id:str}/pause", guards=[requires("submit")], status_code=200, sync_to_thread=True, tags=_TAGS)
def pause_job(request: Asked, store: TheStore, job_id: JobId) -> JobShown:
    """Pause a job: where it runs, it saves a checkpoint and stops."""
    return show_job(steer(store, request.user, job_id, "pause"), recipe=True)


@post("/v1/jobs/{job_id:str}/resume", guards=[requires("submit")], status_code=200, sync_to_thread=True, tags=_TAGS)
def resume_job(request: Asked, store: TheStore, job_id: JobId) -> JobShown:
    """Let a job go on that is paused, or that waited for people who have ranked now."""
    return show_job(steer(store, request.user, job_id, "resume"), recipe=True)


@get(
    "/v1/jobs/{job_id:str}/events",
    guards=[requires("read")],
    tags=_TAGS,
    responses={200: ResponseSpec(EventPage, description="A page, or (text/event-stream) the events as they come.")},
)
async def show_events(
    request: Asked,
    store: TheStore,
    job_id: JobId,
    after: Annotated[int | None, Parameter(ge=0, le=2**53, description="Only events after this number.")] = None,
    last_event_id: Annotated[
        str | None, HeaderParameter(name="Last-Event-ID", max_length=20, description="As `after`; clients send it.")
    ] = None,
    limit: Limit = 200,
) -> Response[EventPage] | Stream:
    """What happened to a job: a page as JSON, or a stream for who accepts `text/event-stream`, which goes on until the
    job has ended. A stream may break off and be taken up at any event; leaving it changes nothing."""
    caller = request.user
    await run_sync(_mine, store, caller, job_id)
    start = after or 0
    if last_event_id and last_event_id.isascii() and last_event_id.isdigit():
        start = max(start, int(last_event_id))
    if "text/event-stream" in request.headers.get("accept", ""):
        content = event_stream(_feed(request, store), job_id, caller.key_id, start)
        return streamed(content, "text/event-stream", **{"cache-control": "no-store", "x-accel-buffering": "no"})

    def read() -> EventPage:
        with store.reading() as session:
            found = [show_event(event) for event in events_after(session, job_id, start, limit + 1)]
        more = len(found) > limit
        return EventPage(items=found[:limit], next=found[limit - 1].number if more else None)

    return Response(await run_sync(read), media_type="application/json")


@get("/v1/jobs/{job_id:str}/log", guards=[requires("read")], media_type="text/plain; charset=utf-8", tags=_TAGS)
async def show_log(
    request: Asked,
    store: TheStore,
    settings: TheSettings,
    job_id: JobId,
    offset: Annotated[int, Parameter(ge=0, le=2**53, description="The first byte.")] = 0,
    follow: Annotated[bool, Parameter(description="Go on as it grows, until the job has ended.")] = False,
) -> Stream:
    """All that a job's attempts wrote, as text; from `offset` on, or a Range of it."""
    caller = request.user
    await run_sync(_mine, store, caller, job_id)
    log = Log(settings, job_id)
    if follow:
        content = log_stream(_feed(request, store), log, job_id, caller.key_id, offset)
        return streamed(content, "text/plain; charset=utf-8", **{"cache-control": "no-store"})
    size = await run_sync(log.size)
    first, end, headers = min(offset, size), size, {"accept-ranges": "bytes", "x-log-size": str(size)}
    if not offset and (asked := request.headers.get("range")):
        try:
            first, end = byte_range(asked, size) or (0, size)
        except Unsatisfiable:
            wrong, more = f"asks for nothing of {size} bytes", {"content-range": f"bytes */{size}"}
            raise refused(416, "the header Range", wrong, "ask for bytes that are there", headers=more) from None
    partial = (first, end) != (0, size) and not offset
    if partial:
        headers["content-range"] = f"bytes {first}-{end - 1}/{size}"
    made = streamed(log_bytes(log, first, end), "text/plain; charset=utf-8", **headers)
    made.status_code = 206 if partial else 200
    return made


@get("/v1/jobs/{job_id:str}/metrics", guards=[requires("read")], sync_to_thread=True, tags=_TAGS)
def show_metrics(
    request: Asked,
    store: TheStore,
    settings: TheSettings,
    job_id: JobId,
    stage: Annotated[str, Parameter(max_length=100, description="Only of this stage.")] = "",
    points: Annotated[int, Parameter(ge=2, le=100_000, description="Most points of a series.")] = 2000,
) -> Metrics:
    """The figures of a job's stages, and their series by step."""
    _mine(store, request.user, job_id)
    return metrics_of(settings, job_id, points, stage)


@get("/v1/jobs/{job_id:str}/artifacts", guards=[requires("read")], sync_to_thread=True, tags=_TAGS)
def list_artifacts(
    request: Asked, store: TheStore, settings: TheSettings, job_id: JobId, limit: Limit = 200, cursor: Cursor = None
) -> ArtifactPage:
    """The files that a job made (its run without checkpoints), with their sizes and hashes."""
    _mine(store, request.user, job_id)
    found, following = Run(settings, job_id).artifacts(cursor or "", limit)
    return ArtifactPage(items=found, next=following)


@get(
    "/v1/jobs/{job_id:str}/artifacts/{path:path}",
    guards=[requires("read")],
    media_type="application/octet-stream",
    tags=_TAGS,
)
async def fetch_artifact(
    request: Asked, store: TheStore, settings: TheSettings, job_id: JobId, path: FromPath[str]
) -> Response[bytes] | Stream:
    """A file that a job made: whole, or a Range of it; its ETag is its SHA-256."""
    await run_sync(_mine, store, request.user, job_id)
    inside = path.removeprefix("/")
    opened = await run_sync(Run(settings, job_id).open, inside)
    if opened is None:
        raise refused(404, "the file", f"{job_id} has no file of this name", "see its artifacts", code="not_found")
    file, artifact = opened
    try:
        name = inside.rpartition("/")[2]
        return download(request, name, artifact.bytes, artifact.sha256, functools.partial(_blocks, file))
    except BaseException:
        file.close()
        raise


@get("/v1/jobs/{job_id:str}/rankings", guards=[requires("rank")], tags=_TAGS)
async def show_ranking(
    request: Asked,
    store: TheStore,
    settings: TheSettings,
    job_id: JobId,
    person: Annotated[str, Parameter(max_length=100, description="Who ranks; needed.")] = "",
    stage: Annotated[str, Parameter(max_length=100, description="The stage, where several rank.")] = "",
) -> Response[RankingDesk]:
    """The next question of a person: answers to order, without who wrote them."""
    job = await run_sync(_mine, store, request.user, job_id)
    if not person:
        raise refused(422, "person", "is missing", "say who ranks: ?person=NAME")
    return Response(await run_sync(next_question, settings, job, person, stage))


@post("/v1/jobs/{job_id:str}/rankings", guards=[requires("rank")], status_code=200, tags=_TAGS)
async def give_ranking(
    request: Asked, store: TheStore, settings: TheSettings, job_id: JobId, data: JSONBody[Judgement]
) -> Response[RankingDesk]:
    """Say what a person ranked; it is kept when this answers, with the next question. Sending it again is harmless."""
    job = await run_sync(_mine, store, request.user, job_id)
    return Response(await run_sync(judge, settings, job, data))


@get("/v1/compare", guards=[requires("read")], sync_to_thread=True, tags=_TAGS)
def compare_runs(
    request: Asked,
    store: TheStore,
    settings: TheSettings,
    jobs: Annotated[str, Parameter(min_length=1, max_length=1500, description="Ids with commas between, at most 20.")],
) -> Compared:
    """Jobs side by side: the settings in which they differ, and their figures."""
    names = list(dict.fromkeys(name for name in jobs.split(",") if name))
    if not 1 <= len(names) <= 20:
        raise refused(422, "jobs", f"names {len(names)} jobs", "name 1 to 20, with commas between")
    for name in names:
        _mine(store, request.user, name)
    return compare_jobs(settings, names)


def _mine(store: Store, caller: Caller, job_id: str) -> Job:
    """A job of the caller's tenant; another tenant's is not there."""
    with store.reading() as session:
        found = session.scalars(select(Job).where(Job.id == job_id, Job.tenant_id == caller.tenant_id)).one_or_none()
    if found is None:
        raise no_job(job_id)
    return found


def _feed(request: Asked, store: Store) -> Feed:
    """What all streams of this application share."""
    feed: Feed = request.app.state.setdefault("feed", None) or Feed(store)
    request.app.state.feed = feed
    return feed


async def _slowly(request: Asked, work: Any, *arguments: Any) -> Any:
    """Do what may take long in a thread of a few that are kept for it."""
    limiter = request.app.state.setdefault("submitting_limiter", None) or CapacityLimiter(_SUBMITTING)
    request.app.state.submitting_limiter = limiter
    return await run_sync(work, *arguments, limiter=limiter)


def _made(answer: Answer) -> Response[Any]:
    headers = {"idempotency-replayed": "true"} if answer.replayed else {}
    if "id" in answer.body:
        headers["location"] = f"/v1/jobs/{answer.body['id']}"
    return Response(answer.body, status_code=answer.status, headers=headers)


def _blocks(file: BufferedReader, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (block := file.read(min(BLOCK, end - start))):
            start += len(block)
            yield block


ROUTES: list[Any] = [
    submit_job,
    retry_job,
    list_jobs,
    show_one_job,
    cancel_job,
    pause_job,
    resume_job,
    show_events,
    show_log,
    show_metrics,
    list_artifacts,
    fetch_artifact,
    show_ranking,
    give_ranking,
    compare_runs,
]
