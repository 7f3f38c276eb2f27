"""`/openai/v1/files`: the same files as `/v1/files`, as OpenAI's clients send and read them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec
from anyio.to_thread import run_sync
from litestar import Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.params import Parameter
from sqlalchemy.orm import Session

from tutelage_server.accounts.caller import Caller, requires
from tutelage_server.accounts.idempotency import body_hash, idempotency_key, once
from tutelage_server.files.deleting import delete_file as forget_file
from tutelage_server.files.downloads import download
from tutelage_server.files.finding import files_of, find_file, whole_file
from tutelage_server.files.incoming import Incoming
from tutelage_server.files.storage import BLOCK, lines_in, open_file, open_lines
from tutelage_server.jobs.states import SUCCEEDED
from tutelage_server.openai.forms import Form, read_form
from tutelage_server.openai.parameters import After, Calling, Id, TheSettings, TheStore
from tutelage_server.openai.schemas import Deleted, OpenAIFile, OpenAIFilePage
from tutelage_server.openai.validating import LONGEST_LINE, NotJsonl, check_jsonl
from tutelage_server.openai.views import RESULTS, results, show_results, unix
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Job, StoredFile, now

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
LARGEST_FORM = 2**42
"Bytes; what a file may have is the tenant's limit, which is watched while the form comes."
SAME_FOR = timedelta(minutes=10)
_SECONDS = (3600, 2_592_000)
_STATUSES: dict[str, Literal["uploaded", "processed", "error"]] = {"processed": "processed", "error": "error"}


@dataclass
class _FormOperation(Operation):
    """Describes the form, of which the framework can't know."""

    def __post_init__(self) -> None:
        fields = {
            "file": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY, description="The file."),
            "purpose": Schema(type=OpenAPIType.STRING, enum=list(PURPOSES), description="What it is for."),
            "expires_after[anchor]": Schema(type=OpenAPIType.STRING, enum=["created_at"]),
            "expires_after[seconds]": Schema(type=OpenAPIType.INTEGER, minimum=_SECONDS[0], maximum=_SECONDS[1]),
        }
        schema = Schema(type=OpenAPIType.OBJECT, required=["file", "purpose"], properties=dict(fields))
        self.request_body = RequestBody(content={"multipart/form-data": OpenAPIMediaType(schema=schema)}, required=True)


@post(
    "/files",
    guards=[requires("submit")],
    status_code=200,
    request_max_body_size=LARGEST_FORM,
    operation_class=_FormOperation,
)
async def create_file(request: Calling, store: TheStore, settings: TheSettings) -> OpenAIFile:
    """Send a file. One for the purpose fine-tune must have a JSON object on every line."""
    tenant = request.user.tenant_id
    incoming = await run_sync(Incoming, settings, store, tenant)
    try:
        form = await read_form(request, lambda piece: run_sync(incoming.write, piece))
        file = await run_sync(_keep, request, store, incoming, form)
    except BaseException as error:
        await run_sync(incoming.__exit__, type(error), error, None)
        raise
    await run_sync(incoming.__exit__, None, None, None)
    return file


def _keep(request: Calling, store: Store, incoming: Incoming, form: Form) -> OpenAIFile:
    """Put a whole file into the storage and its row into the store.

    Raises:
        Refused: 400 when the form lacks something, or the file is not what its purpose asks for; 403, 413, 422.
    """
    purpose, seconds = _purpose(form), _expiry(form)
    incoming.close()
    name = form.filename
    if purpose == "fine-tune":
        with incoming.path.open("rb") as stream:
            try:
                check_jsonl(lines_in(iter(lambda: stream.read(BLOCK), b""), LONGEST_LINE))
            except NotJsonl as error:
                raise refused(400, "file", str(error), code="invalid_file_format") from None
        if not name.lower().endswith(".jsonl"):
            name += ".jsonl"  # a name's ending says how a file is read
    if not seconds and _is_sent_again(request):
        with store.reading() as session:
            if (there := _same(session, request.user.tenant_id, incoming, name, purpose)) is not None:
                return show_file(there)

    def make(session: Session) -> tuple[int, dict[str, Any]]:
        expires = now() + timedelta(seconds=seconds) if seconds else None
        return 200, msgspec.to_builtins(show_file(incoming.add(session, name, purpose, expires)))

    sent = body_hash(request, msgspec.json.encode([incoming.sha256, name, purpose, seconds]))
    answer = once(store, request.user, idempotency_key(request), sent, make)
    return msgspec.convert(answer.body, OpenAIFile)


@get("/files", guards=[requires("read")], sync_to_thread=True)
def list_files(
    request: Calling,
    store: TheStore,
    purpose: Annotated[str | None, Parameter(max_length=40, description="Only files for this purpose.")] = None,
    limit: Annotated[int, Parameter(ge=1, le=10_000, description="How many at most.")] = 10_000,
    after: After = None,
    order: Annotated[Literal["asc", "desc"], Parameter(description="By age.")] = "desc",
) -> OpenAIFilePage:
    """Files that are whole."""
    wanted = files_of(request.user.tenant_id).where(StoredFile.status == "processed")
    wanted = wanted.order_by(StoredFile.id.desc() if order == "desc" else StoredFile.id).limit(limit + 1)
    if purpose is not None:
        wanted = wanted.where(StoredFile.purpose == purpose)
    if after is not None:
        wanted = wanted.where(StoredFile.id < after if order == "desc" else StoredFile.id > after)
    with store.reading() as session:
        found = list(session.scalars(wanted))
    data = [show_file(file) for file in found[:limit]]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return OpenAIFilePage(data=data, has_more=len(found) > limit, first_id=ends[0], last_id=ends[1])


@get("/files/{file_id:str}", guards=[requires("read")], sync_to_thread=True)
def retrieve_file(request: Calling, store: TheStore, settings: TheSettings, file_id: Id) -> OpenAIFile:
    """A file, also a result file of a job."""
    with store.reading() as session:
        if file_id.startswith(RESULTS):
            return show_results(_job_of_results(session, request.user, file_id), settings)
        return show_file(find_file(session, request.user.tenant_id, file_id))


@get(
    "/files/{file_id:str}/content",
    guards=[requires("read")],
    responses={200: ResponseSpec(bytes, media_type="application/octet-stream", description="The file's bytes.")},
)
async def file_content(request: Calling, store: TheStore, settings: TheSettings, file_id: Id) -> Response[Any]:
    """The bytes of a file."""
    if file_id.startswith(RESULTS):
        content = await run_sync(_results, store, settings, request.user, file_id)
        return Response(content, media_type="text/csv")
    file = await run_sync(whole_file, store, request.user.tenant_id, file_id)
    read = functools.partial(open_file, settings, file)
    return download(request, file.name, file.bytes, file.sha256, read)


@delete("/files/{file_id:str}", guards=[requires("submit")], status_code=200, sync_to_thread=True)
def delete_file(request: Calling, store: TheStore, settings: TheSettings, file_id: Id) -> Deleted:
    """Delete a file; jobs keep what they have of it."""
    if file_id.startswith(RESULTS):
        with store.reading() as session:
            _job_of_results(session, request.user, file_id)
        raise refused(409, "", "result files belong to their jobs and can't be deleted", code="result_file")
    forget_file(settings, store, request.user.tenant_id, file_id)
    return Deleted(id=file_id, object="file")


def show_file(file: StoredFile) -> OpenAIFile:
    """A file as OpenAI's clients know it."""
    return OpenAIFile(
        id=file.id,
        bytes=file.bytes,
        created_at=unix(file.created_at),
        filename=file.name,
        purpose=file.purpose or "user_data",
        status=_STATUSES.get(file.status, "uploaded"),
        expires_at=unix(file.expires_at) if file.expires_at else None,
        status_details=file.details or None,
    )


def tunable_file(session: Session, tenant_id: str, file_id: str, param: str) -> StoredFile:
    """The file that a job names.

    Raises:
        Refused: 400 when there is none, or it is for another purpose.
    """
    try:
        file = find_file(session, tenant_id, file_id)
    except Refused:
        fix = "send it with the purpose fine-tune"
        raise refused(400, param, f"there is no file {file_id[:64]}", fix, code="invalid_file") from None
    if file.purpose != "fine-tune" or file.status != "processed":
        wrong = f"the file {file.id} is for {file.purpose or 'no purpose'}"
        raise refused(400, param, wrong, "send it with the purpose fine-tune", code="invalid_file")
    return file


@contextlib.contextmanager
def lines_of(settings: Settings, file: StoredFile) -> Generator[Iterator[bytes], None, None]:
    """The lines of a file."""
    lines = open_lines(settings, file, LONGEST_LINE)
    with contextlib.closing(lines):  # type: ignore[type-var]
        yield lines


def _purpose(form: Form) -> str:
    if not form.filename:
        raise refused(400, "file", "is missing", "send it as a part of the form", code="missing_required_parameter")
    purpose = form.fields.get("purpose", "")
    if purpose not in PURPOSES:
        wrong = f"is {purpose[:40]!r}" if purpose else "is missing"
        raise refused(400, "purpose", wrong, f"give one of {', '.join(PURPOSES)}", code="invalid_value")
    return purpose


def _expiry(form: Form) -> int:
    """Seconds until the file is to be deleted; 0 keeps it."""
    anchor = form.fields.get("expires_after[anchor]")
    seconds = form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return 0
    if anchor != "created_at":
        raise refused(400, "expires_after.anchor", "must be created_at", code="invalid_value")
    least, most = _SECONDS
    if not (seconds and seconds.isascii() and seconds.isdigit() and len(seconds) < 9 and least <= int(seconds) <= most):
        raise refused(400, "expires_after.seconds", f"must lie between {least} and {most}", code="invalid_value")
    return int(seconds)


def _is_sent_again(request: Calling) -> bool:
    """Whether the client says that it sends a request again, whose answer it did not get."""
    return request.headers.get("x-stainless-retry-count", "0") != "0"


def _same(session: Session, tenant_id: str, incoming: Incoming, name: str, purpose: str) -> StoredFile | None:
    """The newest file that is the same as one that came just now, if it came minutes ago."""
    wanted = files_of(tenant_id).where(
        StoredFile.sha256 == incoming.sha256,
        StoredFile.bytes == incoming.bytes,
        StoredFile.name == name,
        StoredFile.purpose == purpose,
        StoredFile.status == "processed",
        StoredFile.expires_at.is_(None),
        StoredFile.created_at > now() - SAME_FOR,
    )
    return session.scalars(wanted.order_by(StoredFile.id.desc()).limit(1)).one_or_none()


def _job_of_results(session: Session, caller: Caller, file_id: str) -> Job:
    """The job of a result file.

    Raises:
        Refused: 404
    """
    job = session.get(Job, f"job-{file_id.removeprefix(RESULTS)}")
    if job is None or job.tenant_id != caller.tenant_id or job.openai is None or job.state != SUCCEEDED:
        raise refused(404, "", f"No such File object: {file_id}", code="file_not_found")
    return job


def _results(store: Store, settings: Settings, caller: Caller, file_id: str) -> bytes:
    with store.reading() as session:
        job = _job_of_results(session, caller, file_id)
    return results(job, settings)
