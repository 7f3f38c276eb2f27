"""Files whose size is not known before they end, such as those that come in forms."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime

from sqlalchemy.orm import Session

from tutelage_server.accounts.limits import check_file_quota, limits_of, stored_bytes
from tutelage_server.files.names import check_name
from tutelage_server.files.storage import storage_of
from tutelage_server.files.uploads import upload_path
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import StoredFile, Tenant, new_id, now


class Incoming:
    """A file that comes piece by piece: `write` each, `close` it, then `add` its row in a transaction.

    To be used in `with`: unless a row was added and committed nothing of it stays. All methods block.
    """

    def __init__(self, settings: Settings, store: Store, tenant_id: str) -> None:
        """Begin a file.

        Raises:
            Refused: 403 when the tenant has no room at all.
        """
        self.id, self.bytes, self.sha256 = new_id("file"), 0, ""
        self._settings, self._tenant = settings, tenant_id
        with store.reading() as session:
            limits = limits_of(session, settings.limits, tenant_id)
            self._room = limits.stored_bytes - stored_bytes(session, tenant_id)
            check_file_quota(session, settings.limits, tenant_id, 0)
        self._most = limits.file_bytes
        self._digest = hashlib.sha256()
        self._key = f"{tenant_id}/{self.id}"
        self._stored = self._added = False
        self.path = upload_path(settings, self.id)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stream = open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b")  # noqa: SIM115, PTH123

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self._stream.close()
        self.path.unlink(missing_ok=True)
        # Whether a row was committed when the store went away is not known, so its bytes stay.
        lost = error is not None and not isinstance(error, StoreUnavailable)
        if self._stored and (lost or not self._added):
            storage_of(self._settings).remove(self._key)

    def write(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            Refused: 413 when a file may not be so large, 403 when the tenant has no room for it.
        """
        self.bytes += len(piece)
        if self.bytes > self._most:
            raise refused(413, "the file", f"has more than the {self._most} bytes that it may have", code="too_large")
        if self.bytes > self._room:
            wrong = f"{self._room} bytes more may be stored"
            raise refused(403, "files", wrong, "delete files that are needed no more", code="storage_full")
        self._digest.update(piece)
        self._stream.write(piece)

    def close(self) -> None:
        """End the file, and put it into the storage.

        Raises:
            Refused: 503
        """
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.sha256 = self._digest.hexdigest()
        storage_of(self._settings).put(self.path, self._key)
        self._stored = True

    def add(self, session: Session, name: str, purpose: str = "", expires_at: datetime | None = None) -> StoredFile:
        """The file's row, added in the caller's transaction.

        Raises:
            Refused: 422 for what can't be a name, 413 or 403 by quota.
        """
        session.get(Tenant, self._tenant, with_for_update=True)
        check_file_quota(session, self._settings.limits, self._tenant, self.bytes)
        file = StoredFile(
            id=self.id,
            tenant_id=self._tenant,
            name=check_name(name),
            bytes=self.bytes,
            received=self.bytes,
            sha256=self.sha256,
            purpose=purpose,
            status="processed",
            object=self._key,
            created_at=now(),
            expires_at=expires_at,
        )
        session.add(file)
        session.flush()
        self._added = True
        return file
