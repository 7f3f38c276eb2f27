"""What keys used: requests are counted in memory and kept every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tutelage_server.accounts.caller import Caller
from tutelage_server.accounts.limits import month_of
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Key, Usage, now


def add_usage(
    session: Session,
    tenant_id: str,
    key_id: str,
    *,
    requests: int = 0,
    jobs: int = 0,
    gpu_seconds: float = 0.0,
    usd: float = 0.0,
    at: datetime | None = None,
) -> None:
    """Add to what a key used this month (or in the month of `at`), in the caller's transaction."""
    which = (tenant_id, month_of(at), key_id)
    row = session.get(Usage, which, with_for_update=True)
    if row is None:  # and others may be about to add it too
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        zeros = {"requests": 0, "jobs": 0, "gpu_seconds": 0.0, "usd": 0.0}
        new = {"tenant_id": which[0], "month": which[1], "key_id": which[2], **zeros}
        session.execute(insert(Usage).values(new).on_conflict_do_nothing())
        row = session.get_one(Usage, which, with_for_update=True)
    row.requests += requests
    row.jobs += jobs
    row.gpu_seconds += gpu_seconds
    row.usd += usd
    session.flush()


class Meter:
    """Counts requests of keys."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}

    def count(self, caller: Caller) -> None:
        """Count one request."""
        with self._lock:
            who = (caller.tenant_id, caller.key_id)
            self._counts[who] = self._counts.get(who, 0) + 1

    def keep(self) -> None:
        """Write the counts to the store; while it can't be reached they stay here for the next time."""
        with self._lock:
            counts, self._counts = self._counts, {}
        if not counts:
            return
        try:
            with self._store.deciding("usage") as session:
                for (tenant_id, key_id), requests in counts.items():
                    add_usage(session, tenant_id, key_id, requests=requests)
                    session.execute(update(Key).where(Key.id == key_id).values(last_used_at=now()))
        except StoreUnavailable:
            self._give_back(counts.items())

    def _give_back(self, counts: Iterable[tuple[tuple[str, str], int]]) -> None:
        with self._lock:
            for who, requests in counts:
                self._counts[who] = self._counts.get(who, 0) + requests
