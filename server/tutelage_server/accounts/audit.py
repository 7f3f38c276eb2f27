"""The audit log: who changed what, when, from where, and how it was answered."""

from __future__ import annotations

import logging

from anyio.to_thread import run_sync
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from tutelage_server.accounts.caller import Caller
from tutelage_server.refusals import status_of
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Audit, now

_log = logging.getLogger(__name__)

_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_ASKS = frozenset({"/v1/advice", "/v1/estimates", "/v1/reviews", "/v1/audits", "/openai/v1/chat/completions"})
"Paths that only answer a question, though by POST."


class AuditLog(ASGIMiddleware):
    """Writes down every request with a valid key that changes something or wanted to, before its answer is sent."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, store: Store) -> None:
        self._store = store

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Go on, and note what came of it."""
        if scope.get("method") not in _CHANGES or scope["path_template"] in _ASKS:
            await next_app(scope, receive, send)
            return

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                await run_sync(self._note, scope, message["status"])
            await send(message)

        try:
            await next_app(scope, receive, noting)
        except Exception as error:  # refused by what stands between here and the handler
            await run_sync(self._note, scope, status_of(error))
            raise

    def _note(self, scope: Scope, status: int) -> None:
        caller: Caller = scope["user"]
        client = scope.get("client")
        entry = Audit(
            at=now(),
            tenant_id=caller.tenant_id,
            key_id=caller.key_id,
            action=f"{scope['method']} {scope['path_template']}"[:100],  # type: ignore[typeddict-item]
            target=" ".join(str(value) for value in scope["path_params"].values())[:255],
            status=status,
            address=client[0] if client else "",
        )
        try:
            with self._store.writing() as session:
                session.add(entry)
        except StoreUnavailable:
            line = (entry.action, entry.target, entry.status, entry.tenant_id, entry.key_id, entry.address)
            _log.error("the audit log can't be written: %s", line)
