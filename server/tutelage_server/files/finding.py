"""Finds a tenant's files; what has expired or is being deleted is there no more."""

from __future__ import annotations

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from tutelage_server.problems import Refused, refused
from tutelage_server.store.store import Store
from tutelage_server.store.tables import StoredFile, now

DELETED = "deleted"
"The status of a file whose bytes may still be there, but that nobody sees."


def files_of(tenant_id: str) -> Select[StoredFile]:
    """The tenant's files, whole or not."""
    return select(StoredFile).where(
        StoredFile.tenant_id == tenant_id,
        StoredFile.status != DELETED,
        or_(StoredFile.expires_at.is_(None), StoredFile.expires_at > now()),
    )


def find_file(session: Session, tenant_id: str, file_id: str) -> StoredFile:
    """One of the tenant's files.

    Raises:
        Refused: 404
    """
    file = session.scalars(files_of(tenant_id).where(StoredFile.id == file_id)).one_or_none()
    if file is None:
        raise no_file(file_id)
    return file


def whole_file(store: Store, tenant_id: str, file_id: str) -> StoredFile:
    """One of the tenant's files, all of which has arrived.

    Raises:
        Refused: 404, or 409 while it is not whole.
    """
    with store.reading() as session:
        file = find_file(session, tenant_id, file_id)
    if file.status != "processed":
        wrong = f"the file {file.id} is not all there: {file.received} of {file.bytes} bytes"
        raise refused(409, "the file", wrong, "go on with its upload", code="not_whole")
    return file


def no_file(file_id: str) -> Refused:
    """What is answered for a file that is not there, or another tenant's."""
    return refused(404, "the file", f"no file {file_id[:64]} is yours", "list yours: GET /v1/files")
