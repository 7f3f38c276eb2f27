"""Whether the server lives and is ready, its metrics, and its description."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import MediaType, Request, Response, get
from litestar.di import NamedDependency
from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import select

from tutelage import __version__
from tutelage_server.accounts.caller import Caller, requires
from tutelage_server.operations.description import describe
from tutelage_server.operations.metrics import Metrics
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Tenant


class Health(msgspec.Struct, kw_only=True):
    """How the server is."""

    status: Annotated[str, Meta(description="`ok`.", examples=["ok"])] = "ok"
    version: Annotated[str, Meta(description="The server's version.")] = __version__


@get(["/v1/healthz", "/healthz"], sync_to_thread=False, tags=["operations"])
def healthz() -> Health:
    """Whether the server lives. It asks nothing of the store."""
    return Health()


@get(["/v1/readyz", "/readyz"], sync_to_thread=True, tags=["operations"])
def readyz(store: NamedDependency[Store]) -> Health:
    """Whether the server can do its work: 503 while its store can't be reached."""
    with store.reading() as session:
        session.execute(select(Tenant.id).limit(1))
    return Health()


@get("/v1/metrics", guards=[requires("admin")], media_type=MediaType.TEXT, sync_to_thread=True, tags=["operations"])
def show_metrics(
    request: Request[Caller, Any, Any],
    store: NamedDependency[Store],
    settings: NamedDependency[Settings],
    metrics: NamedDependency[Metrics],
) -> Response[bytes]:
    """The server's metrics, for Prometheus: requests, jobs by state, files. Only for keys of the operator."""
    with store.reading() as session:
        tenant = session.get_one(Tenant, request.user.tenant_id)
    if tenant.name != settings.operator:
        raise refused(403, "metrics", "tell of every tenant", "use an admin key of the operator", code="not_operator")
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


@get("/v1/openapi.json", sync_to_thread=False, include_in_schema=False, media_type="application/json")
def show_description(request: Request[Any, Any, Any]) -> bytes:
    """What this server offers, in OpenAPI 3.1."""
    return describe(request.app)


ROUTES: list[Any] = [healthz, readyz, show_metrics, show_description]
