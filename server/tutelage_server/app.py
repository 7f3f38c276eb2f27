"""The Litestar application: all routes, and what stands around them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from anyio.to_thread import run_sync
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import Message, Scope

from tutelage_server.accounts.audit import AuditLog
from tutelage_server.accounts.authentication import Authentication
from tutelage_server.accounts.idempotency import forget_old
from tutelage_server.accounts.keys import Keys
from tutelage_server.accounts.limits import Rates
from tutelage_server.accounts.routes import ROUTES as ACCOUNTS
from tutelage_server.accounts.usage import Meter
from tutelage_server.advice.routes import ROUTES as ADVICE
from tutelage_server.files.deleting import tidying
from tutelage_server.files.routes import ROUTES as FILES
from tutelage_server.jobs.checking import Checker
from tutelage_server.jobs.folders import forget_unborn
from tutelage_server.jobs.routes import ROUTES as JOBS
from tutelage_server.jobs.submitting import Submitting
from tutelage_server.middleware import LARGEST_BODY, Bodies, OwnAddress, Tags
from tutelage_server.openai.chats import answering
from tutelage_server.openai.routes import ROUTES as OPENAI
from tutelage_server.operations.description import openapi_config
from tutelage_server.operations.metrics import Measured, Metrics
from tutelage_server.operations.routes import ROUTES as OPERATIONS
from tutelage_server.refusals import allowed_methods, answer_problem, request_id
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store, StoreUnavailable

_log = logging.getLogger(__name__)

_KEEP_SECONDS = 10.0
_FORGET_EVERY = 360
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"private, no-cache",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
_PAGE_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'"


def create_app(settings: Settings, store: Store) -> Litestar:
    """The application on an open store whose tables are up to date (`store.migrations.upgrade`)."""
    keys, meter, metrics = Keys(store), Meter(store), Metrics(store)
    checker = Checker(settings.allow_hub)
    submitting = Submitting(settings, store, checker)
    provided = {"settings": settings, "store": store, "keys": keys, "metrics": metrics, "submitting": submitting}
    return Litestar(
        route_handlers=[*ACCOUNTS, *ADVICE, *FILES, *JOBS, *OPENAI, *OPERATIONS],
        state=State({"settings": settings, "store": store}),
        dependencies={name: Provide(_giving(value), sync_to_thread=False) for name, value in provided.items()},
        middleware=[
            Measured(metrics),
            OwnAddress(settings),
            Authentication(keys, Rates(settings.limits), meter),
            AuditLog(store),
            Bodies(settings.body_seconds),
            Tags(),
        ],
        exception_handlers={Exception: answer_problem},
        before_send=[_headers_for(bool(settings.certificate))],
        request_max_body_size=LARGEST_BODY,
        openapi_config=openapi_config(),
        logging_config=None,
        on_shutdown=[checker.close],
        lifespan=[answering, _keeping(settings, store, meter), tidying(settings, store)],
    )


def _giving(value: Any) -> Any:
    def give() -> Any:
        return value

    return give


def _headers_for(tls: bool) -> Any:
    """What gives every answer its id and the headers that keep browsers from mischief."""
    usual = dict(_HEADERS)
    if tls:
        usual[b"strict-transport-security"] = b"max-age=31536000"

    async def add(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        headers = dict(usual)
        if scope.get("path_template", "").startswith("/docs"):
            headers[b"content-security-policy"] = _PAGE_POLICY
        headers[b"x-request-id"] = request_id(scope).encode()
        if scope.get("method") == "OPTIONS":  # the framework's own knows only the methods that came first
            message["headers"] = [each for each in message["headers"] if each[0] != b"allow"]
            headers[b"allow"] = allowed_methods(scope).encode()
        there = {name for name, _ in message["headers"]}
        message["headers"] = [
            *message["headers"],
            *((name, value) for name, value in headers.items() if name not in there),
        ]

    return add


def _keeping(settings: Settings, store: Store, meter: Meter) -> Any:
    """While the application runs: keep what its meter counted, and drop answers that are kept no more."""

    async def keep_on() -> None:
        rounds = 0
        while True:
            await asyncio.sleep(_KEEP_SECONDS)
            try:
                await run_sync(meter.keep)
                if rounds % _FORGET_EVERY == 0:
                    await run_sync(forget_old, store)
                    await run_sync(forget_unborn, store, settings)
            except StoreUnavailable as error:
                _log.warning("usage can't be kept now: %s", error)
            except Exception:  # this must go on as long as the server does
                _log.exception("usage can't be kept now")
            rounds += 1

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        task = asyncio.create_task(keep_on())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await run_sync(meter.keep)

    return lifespan
