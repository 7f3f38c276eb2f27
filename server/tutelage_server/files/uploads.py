"""Uploads: announced, sent in as many requests as it takes, verified, stored. What broke off goes on where it was.

An upload's bytes lie in a file that one request at a time may lengthen (`flock`), so what a lost request left is a
beginning of the right bytes and the next one begins at its end. Servers that share a store share `home`; where one
doesn't, an upload that comes to another server begins anew, and is whole or absent all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tutelage_server.accounts.limits import check_file_quota
from tutelage_server.files.finding import files_of, find_file, no_file
from tutelage_server.files.names import check_name
from tutelage_server.files.schemas import NewFile
from tutelage_server.files.storage import BLOCK, storage_of
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import StoredFile, Tenant, new_id, now
from tutelage_server.times import in_utc

_OPEN_UPLOADS = 1000
"Of one tenant."
_SOON = {"retry-after": "1"}
_WAIT_SECONDS = 20.0


def announce(session: Session, settings: Settings, tenant_id: str, new: NewFile) -> tuple[StoredFile, bool]:
    """The file that is to be sent, or one that the tenant has already, and whether it is a new one.

    With the hash of bytes that are there nothing need be sent: the same name and purpose is the same file, another one
    is a new file that shares the bytes. An upload of the same file that was begun goes on.

    Raises:
        Refused: 413 or 403 by quota, 422 for what can't be a name or a time.
    """
    name = check_name(new.name)
    expires_at = None if new.expires_at is None else in_utc(new.expires_at, "expires_at")
    if expires_at is not None and expires_at <= now():
        raise refused(422, "expires_at", "has passed", "give a time to come")
    if new.bytes == 0 and new.sha256 not in (None, hashlib.sha256().hexdigest()):
        raise refused(422, "sha256", "is not that of an empty file", "give its size and hash as they are")
    session.get(Tenant, tenant_id, with_for_update=True)  # one decides on a tenant's quota at a time
    file = StoredFile(
        id=new_id("file"),
        tenant_id=tenant_id,
        name=name,
        bytes=new.bytes,
        received=0,
        sha256=new.sha256 or "",
        purpose=new.purpose,
        status="uploading",
        created_at=now(),
        expires_at=expires_at,
    )
    if new.sha256 is not None:
        there = list(session.scalars(_same_bytes(tenant_id, new.sha256, new.bytes)))
        for each in sorted(there, key=lambda each: each.status != "processed"):
            if (each.name, each.purpose, each.expires_at) == (name, new.purpose, expires_at):
                return each, False
        if whole := next((each for each in there if each.status == "processed"), None):
            file.status, file.received, file.object = "processed", whole.bytes, whole.object
    check_file_quota(session, settings.limits, tenant_id, new.bytes)
    _check_open(session, tenant_id)
    session.add(file)
    session.flush()
    return file, True


def _same_bytes(tenant_id: str, sha256: str, size: int) -> Any:
    return files_of(tenant_id).where(
        StoredFile.sha256 == sha256, StoredFile.bytes == size, StoredFile.status.in_(("processed", "uploading"))
    )


def _check_open(session: Session, tenant_id: str) -> None:
    mine = files_of(tenant_id).where(StoredFile.status == "uploading").subquery()
    if (session.scalar(select(func.count()).select_from(mine)) or 0) >= _OPEN_UPLOADS:
        wrong = f"{_OPEN_UPLOADS} uploads of this tenant are not finished"
        raise refused(403, "files", wrong, "finish or delete some", code="too_many_uploads")


def reached(settings: Settings, store: Store, tenant_id: str, file_id: str) -> StoredFile:
    """A file whose `received` is exact. What is whole but not verified (a crash left it; it is empty) is finished here.

    Raises:
        Refused: 404; 503 while another request finishes it; 422 when its hash turns out wrong.
    """
    with store.reading() as session:
        file = find_file(session, tenant_id, file_id)
    if file.status != "uploading":
        return file
    path = upload_path(settings, file_id)
    size = path.stat().st_size if path.exists() else 0
    if size < file.bytes:
        file.received = size
        return file
    with _alone(path, wait=_WAIT_SECONDS) as stream:
        with store.reading() as session:
            file = find_file(session, tenant_id, file_id)
        return file if file.status != "uploading" else _finish(settings, store, file, stream)


async def receive(
    settings: Settings, store: Store, tenant_id: str, file_id: str, offset: int | None, pieces: AsyncIterator[bytes]
) -> StoredFile:
    """Append pieces to an upload, and store it when that makes it whole. What arrived stays when `pieces` break off.

    Args:
        offset: how many bytes the sender believes to be there.
    Raises:
        Refused: 404; 400 without an offset; 409 with Upload-Offset where that is another one, or another request is
            sending; 413 for more bytes than were announced; 422 when the hash is wrong: the upload then begins anew.
    """
    file = await run_sync(_find, store, tenant_id, file_id)
    if offset is None:
        raise refused(400, "the header Upload-Offset", "is missing", "say where the bytes belong; HEAD tells it")
    if file.status != "uploading":
        raise _elsewhere(file.bytes, "is whole already")
    path = upload_path(settings, file_id)
    async with _held(path) as stream:
        file = await run_sync(_find, store, tenant_id, file_id)
        if file.status != "uploading":  # another request finished it, and this one made its file anew
            path.unlink(missing_ok=True)
            raise _elsewhere(file.bytes, "is whole already")
        size = os.fstat(stream).st_size
        if offset != size:
            raise _elsewhere(size, f"goes on at {size}, not at {offset}")
        try:
            await _append(stream, size, file.bytes, pieces)
        finally:
            file = await run_sync(_note, store, tenant_id, file_id, stream)
        if file.received < file.bytes:
            return file
        return await run_sync(_finish, settings, store, file, stream)


async def _append(stream: int, start: int, most: int, pieces: AsyncIterator[bytes]) -> None:
    size, waiting = start, bytearray()
    try:
        async for piece in pieces:
            if size + len(waiting) + len(piece) > most:
                waiting.clear()
                await run_sync(os.ftruncate, stream, start)
                wrong = f"has more than the {most} bytes that were announced"
                raise refused(413, "the file", wrong, "announce its true size", code="too_large")
            waiting += piece
            if len(waiting) >= BLOCK:
                size += await _write(stream, waiting)
    finally:
        if waiting:
            await _write(stream, waiting)


async def _write(stream: int, waiting: bytearray) -> int:
    data = bytes(waiting)
    waiting.clear()
    await run_sync(_write_all, stream, data)
    return len(data)


def _write_all(stream: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def _find(store: Store, tenant_id: str, file_id: str) -> StoredFile:
    with store.reading() as session:
        return find_file(session, tenant_id, file_id)


def _note(store: Store, tenant_id: str, file_id: str, stream: int) -> StoredFile:
    """Make what arrived durable, and tell the store how much it is."""
    os.fsync(stream)
    with store.writing() as session:
        file = find_file(session, tenant_id, file_id)
        file.received = os.fstat(stream).st_size
        return file


def _finish(settings: Settings, store: Store, file: StoredFile, stream: int) -> StoredFile:
    """Verify a whole upload and store it: the bytes first, then the row that names them."""
    path, key = upload_path(settings, file.id), f"{file.tenant_id}/{file.id}"
    found = _hash(stream)
    if file.sha256 and found != file.sha256:
        os.ftruncate(stream, 0)
        with store.writing() as session:
            find_file(session, file.tenant_id, file.id).received = 0
        wrong = f"arrived with the SHA-256 {found}, and {file.sha256} was announced"
        raise refused(422, "the file", wrong, "send it again, from its beginning", code="wrong_hash")
    storage_of(settings).put(path, key)
    with store.writing() as session:
        row = session.get(StoredFile, file.id, with_for_update=True)
        there = row is not None and row.status == "uploading"
        if row is not None and there:
            row.status, row.received, row.sha256, row.object = "processed", row.bytes, found, key
    path.unlink(missing_ok=True)
    if row is None or not there:  # it was deleted meanwhile
        storage_of(settings).remove(key)
        raise no_file(file.id)
    return row


def _hash(stream: int) -> str:
    digest, at = hashlib.sha256(), 0
    while block := os.pread(stream, BLOCK, at):
        digest.update(block)
        at += len(block)
    return digest.hexdigest()


def upload_path(settings: Settings, file_id: str) -> Path:
    """Where an upload grows."""
    return settings.folder / "uploads" / file_id


@contextlib.contextmanager
def _alone(path: Path, wait: float = 0.0) -> Iterator[int]:
    """The upload's file, which nobody else may lengthen.

    Raises:
        Refused: 409 when another request does, 503 when it still does after `wait` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    stream = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(stream, wait)
        yield stream
    finally:
        os.close(stream)


def _lock(stream: int, wait: float) -> None:
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            wrong = "is being received or verified by another request"
            status, code = (503, "busy") if wait else (409, "upload_busy")
            raise refused(status, "the file", wrong, "ask again in a moment", code=code, headers=_SOON) from None
        return


@contextlib.asynccontextmanager
async def _held(path: Path) -> AsyncIterator[int]:
    with _alone(path) as stream:  # opening and closing a local file blocks for no time that counts
        yield stream


def _elsewhere(offset: int, wrong: str) -> Refused:
    headers = {"upload-offset": str(offset)}
    return refused(409, "the upload", wrong, "go on where Upload-Offset says", code="wrong_offset", headers=headers)
