"""Deletes files: those that somebody deletes, those whose time is over, and uploads that nobody goes on with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from anyio.to_thread import run_sync
from sqlalchemy import func, or_, select

from tutelage.errors import TutelageError
from tutelage_server.files.finding import DELETED, find_file
from tutelage_server.files.storage import reviews_folder, storage_of
from tutelage_server.files.uploads import upload_path
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import StoredFile, Tenant, now

ABANDONED = timedelta(days=7)
"After that time an upload that is not whole is taken for one that nobody goes on with."
EVERY = 600.0
_log = logging.getLogger(__name__)


def delete_file(settings: Settings, store: Store, tenant_id: str, file_id: str) -> None:
    """Delete one of a tenant's files. What jobs have of it stays theirs.

    Raises:
        Refused: 404, or 503 when its bytes can't be removed now; nobody sees it then, and it is removed later.
    """
    with store.writing() as session:
        find_file(session, tenant_id, file_id).status = DELETED
    _remove(settings, store, tenant_id, file_id)


def _remove(settings: Settings, store: Store, tenant_id: str, file_id: str) -> None:
    """Remove the bytes of a file that nobody sees any more, unless others share them; then its row."""
    with store.writing() as session:
        session.get(Tenant, tenant_id, with_for_update=True)  # nobody begins to share the bytes meanwhile
        file = session.get(StoredFile, file_id)
        if file is None:
            return
        sharing = select(func.count()).where(
            StoredFile.object == file.object, StoredFile.id != file_id, StoredFile.status != DELETED
        )
        alone = bool(file.object) and not session.scalar(sharing)
    if alone:  # a file that is deleted is never shared anew, so this can't change
        storage_of(settings).remove(file.object)
    upload_path(settings, file_id).unlink(missing_ok=True)
    shutil.rmtree(reviews_folder(settings, file_id), ignore_errors=True)
    with store.writing() as session:
        if (row := session.get(StoredFile, file_id)) is not None:
            session.delete(row)


def tidy(settings: Settings, store: Store) -> int:
    """Delete what has expired, was abandoned, or was left half deleted; how many files that were.

    Raises:
        Refused: 503
        StoreUnavailable
    """
    at = now()
    abandoned = (StoredFile.status == "uploading") & (StoredFile.created_at < at - ABANDONED)
    over = or_(StoredFile.expires_at <= at, StoredFile.status == DELETED, abandoned)
    with store.writing() as session:
        found = list(session.scalars(select(StoredFile).where(over).limit(1000)))
        for file in found:
            file.status = DELETED
    for file in found:
        _remove(settings, store, file.tenant_id, file.id)
    _forget_uploads(settings, store)
    _forget_borrowed(settings)
    return len(found)


def _forget_uploads(settings: Settings, store: Store) -> None:
    """Remove what uploads left that have no row, such as forms whose server was killed."""
    folder = settings.folder / "uploads"
    if not folder.is_dir():
        return
    before = time.time() - ABANDONED.total_seconds()
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                with store.reading() as session:
                    file = session.get(StoredFile, path.name)
                if file is None or file.status != "uploading":
                    path.unlink()


def _forget_borrowed(settings: Settings) -> None:
    """Remove what was lent to work whose server was killed meanwhile."""
    for folder in (settings.folder / "borrowed").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if folder.stat().st_mtime < time.time() - 86_400:
                shutil.rmtree(folder, ignore_errors=True)


def tidying(settings: Settings, store: Store) -> Any:
    """A lifespan that tidies up every ten minutes while the application runs.

    Raises:
        TutelageError: at once, when the settings name a storage that can't be used.
    """
    storage_of(settings)

    async def keep_on() -> None:
        while True:
            try:
                await run_sync(tidy, settings, store)
            except (TutelageError, OSError) as error:
                _log.warning("files can't be tidied up now: %s", error)
            await asyncio.sleep(EVERY)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(keep_on())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return lifespan
