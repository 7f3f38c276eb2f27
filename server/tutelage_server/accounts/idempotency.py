"""Idempotency: a POST that is sent again gets the answer of the first, and creates nothing twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
from litestar import Request
from sqlalchemy import delete
from sqlalchemy.orm import Session

from tutelage_server.accounts.caller import Caller
from tutelage_server.problems import refused
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Idempotency, now

KEPT = timedelta(hours=24)
"How long an answer is kept for a request that is sent again."


class Answer(msgspec.Struct, frozen=True):
    """An answer to a POST; `replayed` when it was made for an earlier request."""

    status: int
    body: dict[str, Any]
    replayed: bool = False


def idempotency_key(request: Request[Caller, Any, Any]) -> str | None:
    """The header Idempotency-Key of a request; None when it has none.

    Raises:
        Refused: 400 when it is empty, too long, or no printable ASCII.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= 200 or not key.isascii() or not key.isprintable():
        raise refused(400, "the header Idempotency-Key", "is not 1 to 200 printable ASCII characters", "send a UUID")
    return key


def body_hash(request: Request[Caller, Any, Any], body: bytes) -> str:
    """What tells whether two requests are the same: a hash of method, path and body."""
    return hashlib.sha256(b"\0".join((request.method.encode(), request.url.path.encode(), body))).hexdigest()


def once(
    store: Store,
    caller: Caller,
    key: str | None,
    body: str,
    make: Callable[[Session], tuple[int, dict[str, Any]]],
    kept: timedelta = KEPT,
) -> Answer:
    """Answer a request that creates something, once for each key of a tenant.

    The answer is stored in the transaction that creates, so neither can be there without the other. A second
    request with the key waits for the first one's transaction; one whose `make` raises leaves nothing behind.

    Args:
        key: the request's own (`idempotency_key`), or one derived from its body; None: nothing is remembered.
        body: `body_hash` of the request.
        make: creates in the given session and returns the status and body of the answer; it does nothing slow,
            for other writers wait.
        kept: after that time the same key begins anew.
    Raises:
        Refused: 422 when the key came before with another request.
        StoreUnavailable
    """
    if key is None:
        with store.writing() as session:
            return Answer(*make(session))
    with store.deciding(f"once {caller.tenant_id} {key}") as session:
        row = session.get(Idempotency, (caller.tenant_id, key))
        if row is not None and row.created_at < now() - kept:
            session.delete(row)
            session.flush()
            row = None
        if row is not None:
            if row.body != body:
                wrong = "came before with another request"
                raise refused(422, "the header Idempotency-Key", wrong, "send a new one", code="idempotency_key_reused")
            return Answer(row.status or 200, row.answer or {}, replayed=True)
        status, answer = make(session)
        session.add(
            Idempotency(tenant_id=caller.tenant_id, key=key, body=body, status=status, answer=answer, created_at=now())
        )
        return Answer(status, answer)


def forget_old(store: Store) -> None:
    """Delete answers that are kept no more."""
    with store.writing() as session:
        session.execute(delete(Idempotency).where(Idempotency.created_at < now() - KEPT))
