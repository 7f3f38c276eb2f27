"""`/v1/files`."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from anyio.to_thread import run_sync
from litestar import Request, Response, delete, get, head, patch, post
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException
from litestar.params import FromPath, JSONBody, Parameter
from litestar.response import Stream
from litestar.status_codes import HTTP_204_NO_CONTENT
from sqlalchemy.orm import Session

from tutelage_server.accounts.caller import Caller, requires
from tutelage_server.accounts.idempotency import body_hash, idempotency_key, once
from tutelage_server.files.deleting import delete_file
from tutelage_server.files.downloads import download
from tutelage_server.files.finding import files_of, find_file, whole_file
from tutelage_server.files.schemas import FilePage, FileShown, NewFile, show_file
from tutelage_server.files.storage import open_file
from tutelage_server.files.uploads import announce, reached, receive
from tutelage_server.pages import page
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import StoredFile

Asked = Request[Caller, Any, Any]
FileId = Annotated[FromPath[str], Parameter(max_length=64, description="The file's id.")]


# Handlers that return a Response are async: at an address with several methods the framework (2.25) wraps blocking ones
# twice, and then takes the inner one's coroutine for the answer.


@post("/v1/files", guards=[requires("submit")], tags=["files"])
async def create_file(
    request: Asked, store: NamedDependency[Store], settings: NamedDependency[Settings], data: JSONBody[NewFile]
) -> Response[FileShown]:
    """Announce a file. Its bytes are then sent by PATCH to its content.

    With a hash of what the tenant has already, nothing need be sent: the answer is a file that is processed.
    """
    caller = request.user

    def make(session: Session) -> tuple[int, dict[str, Any]]:
        file, new = announce(session, settings, caller.tenant_id, data)
        return 201 if new else 200, msgspec.to_builtins(show_file(file))

    body = body_hash(request, msgspec.json.encode(data))
    answer = await run_sync(once, store, caller, idempotency_key(request), body, make)
    shown = msgspec.convert(answer.body, FileShown)
    if shown.status == "uploading":
        shown = show_file(await run_sync(reached, settings, store, caller.tenant_id, shown.id))
    return Response(shown, status_code=answer.status, headers={"location": f"/v1/files/{shown.id}"})


@get("/v1/files", guards=[requires("read")], sync_to_thread=True, tags=["files"])
def list_files(
    request: Asked,
    store: NamedDependency[Store],
    limit: Annotated[int, Parameter(ge=1, le=200, description="How many to show at most.")] = 50,
    cursor: Annotated[str | None, Parameter(max_length=64, description="Where the page begins.")] = None,
    sha256: Annotated[
        str | None, Parameter(pattern="^[0-9a-f]{64}$", description="Only files with this SHA-256.")
    ] = None,
    purpose: Annotated[str | None, Parameter(max_length=40, description="Only files for this purpose.")] = None,
) -> FilePage:
    """The tenant's files, newest first."""
    mine = files_of(request.user.tenant_id)
    if sha256 is not None:
        mine = mine.where(StoredFile.sha256 == sha256)
    if purpose is not None:
        mine = mine.where(StoredFile.purpose == purpose)
    with store.reading() as session:
        rows, following = page(session, mine, StoredFile.id, limit, cursor)
    return FilePage(items=[show_file(row) for row in rows], next=following)


@get("/v1/files/{file_id:str}", guards=[requires("read")], sync_to_thread=True, tags=["files"])
def show_one_file(request: Asked, store: NamedDependency[Store], file_id: FileId) -> FileShown:
    """One of the tenant's files."""
    with store.reading() as session:
        return show_file(find_file(session, request.user.tenant_id, file_id))


@delete("/v1/files/{file_id:str}", guards=[requires("submit")], sync_to_thread=True, tags=["files"])
def delete_one_file(
    request: Asked, store: NamedDependency[Store], settings: NamedDependency[Settings], file_id: FileId
) -> None:
    """Delete a file. Jobs that were submitted with it keep what they need of it."""
    delete_file(settings, store, request.user.tenant_id, file_id)


@patch(
    "/v1/files/{file_id:str}/content",
    guards=[requires("submit")],
    status_code=HTTP_204_NO_CONTENT,
    request_max_body_size=None,
    tags=["files"],
    opt={"body": "application/offset+octet-stream"},
)
async def send_content(
    request: Asked,
    store: NamedDependency[Store],
    settings: NamedDependency[Settings],
    file_id: FileId,
    upload_offset: Annotated[
        int | None,
        Parameter(header="Upload-Offset", ge=0, le=2**53, description="How many bytes are there; needed."),
    ] = None,
) -> Response[None]:
    """Send bytes, from an offset on, as they are (`application/offset+octet-stream`); as many requests as it takes.

    Upload-Offset of the answer is where the next ones belong. When all are there they are verified and stored. After a
    lost connection HEAD tells how many arrived.
    """
    file = await receive(settings, store, request.user.tenant_id, file_id, upload_offset, _pieces(request))
    return Response(None, status_code=HTTP_204_NO_CONTENT, headers={"upload-offset": str(file.received)})


@head("/v1/files/{file_id:str}/content", guards=[requires("read")], tags=["files"])
async def show_offset(
    request: Asked, store: NamedDependency[Store], settings: NamedDependency[Settings], file_id: FileId
) -> Response[None]:
    """How many bytes have arrived (Upload-Offset) of how many (Upload-Length)."""
    file = await run_sync(reached, settings, store, request.user.tenant_id, file_id)
    headers = {"upload-offset": str(file.received), "upload-length": str(file.bytes), "cache-control": "no-store"}
    if file.status == "processed":
        headers |= {"etag": f'"{file.sha256}"', "accept-ranges": "bytes"}
    return Response(None, headers=headers)


@get(
    "/v1/files/{file_id:str}/content",
    guards=[requires("read")],
    media_type="application/octet-stream",
    tags=["files"],
)
async def read_content(
    request: Asked, store: NamedDependency[Store], settings: NamedDependency[Settings], file_id: FileId
) -> Stream:
    """The file's bytes, or a range of them (`Range: bytes=0-99`); the ETag is their SHA-256."""
    file = await run_sync(whole_file, store, request.user.tenant_id, file_id)
    read = functools.partial(open_file, settings, file)
    return download(request, file.name, file.bytes, file.sha256, read)  # type: ignore[return-value]


async def _pieces(request: Asked) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except InternalServerException:  # what the framework raises when a client leaves
        raise refused(400, "the body", "ended early", "go on where HEAD says") from None


ROUTES: list[Any] = [
    create_file,
    list_files,
    show_one_file,
    delete_one_file,
    send_content,
    show_offset,
    read_content,
]
