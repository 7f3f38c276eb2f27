"""Authentication: the key in `Authorization: Bearer tut_…` becomes `request.user`, within its rate."""

from __future__ import annotations

import anyio
from anyio.to_thread import run_sync
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from tutelage_server.accounts.keys import Keys, unauthorized
from tutelage_server.accounts.limits import Rates
from tutelage_server.accounts.usage import Meter
from tutelage_server.problems import refused

OPEN = frozenset(
    {
        *("/healthz", "/readyz", "/v1/healthz", "/v1/readyz"),
        *("/v1/openapi.json", "/docs", "/docs/openapi.json", "/docs/{path}"),
    }
)
"Paths that answer without a key; they tell nothing of any tenant."
UNSCOPED = frozenset({"/v1/me"})
"Paths that answer every key, whatever its scopes."


class Authentication(ASGIMiddleware):
    """Lets a request pass with a valid key whose rate is not used up, and every request to an open path."""

    scopes = (ScopeType.HTTP, ScopeType.WEBSOCKET)

    def __init__(self, keys: Keys, rates: Rates, meter: Meter) -> None:
        self._keys, self._rates, self._meter = keys, rates, meter
        self._hashing = anyio.CapacityLimiter(4)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Find who calls, take a request from their rate, and go on.

        Raises:
            Refused: 401 without a valid key, 429 when its rate is used up.
        """
        if scope["path_template"] in OPEN:
            scope["user"] = scope["auth"] = None
            await next_app(scope, receive, send)
            return
        text = _bearer(scope)
        caller = self._keys.remembered(text)
        if caller is None:
            caller = await run_sync(self._keys.check, text, limiter=self._hashing)
        self._rates.take(caller)
        self._meter.count(caller)
        scope["user"], scope["auth"] = caller, None
        await next_app(scope, receive, send)


def _bearer(scope: Scope) -> str:
    """The key of a request."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) > 1:
        raise refused(400, "the header Authorization", "is there more than once", "send it once")
    scheme, _, text = (values[0] if values else b"").partition(b" ")
    text = text.strip()
    if scheme.lower() != b"bearer" or not text or not text.isascii():
        raise unauthorized("is missing", "send the header Authorization: Bearer tut_…")
    return text.decode("ascii")
