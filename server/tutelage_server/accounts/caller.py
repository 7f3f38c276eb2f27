"""Who calls: the key of a request, its tenant and its scopes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from tutelage_server.problems import refused

SCOPES = ("advise", "submit", "read", "rank", "admin")


class Caller(msgspec.Struct, frozen=True):
    """The key that a request carries, which authentication puts at `request.user`."""

    key_id: str
    tenant_id: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None


def requires(scope: str) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]:
    """A guard that lets only keys with a scope pass: `@get(..., guards=[requires("read")])`.

    Every handler has one, or is named among the open ones (`accounts.authentication.OPEN`).
    """
    if scope not in SCOPES:
        raise ValueError(f"{scope} is no scope")

    # A plain function would be called in a thread of its own at every request.
    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        caller: Caller = connection.user
        if scope not in caller.scopes:
            wrong = f"this key lacks the scope {scope} (it has {', '.join(sorted(caller.scopes)) or 'none'})"
            raise refused(403, "the key", wrong, "ask an admin for one that has it", code="scope_missing")

    return guard
