"""`/v1/me`, `/v1/keys`, `/v1/usage` and `/v1/audit-log`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, Parameter
from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage_server.accounts.caller import Caller, requires
from tutelage_server.accounts.idempotency import body_hash, idempotency_key, once
from tutelage_server.accounts.keys import Keys, make_key, revoke_key, tenant_named
from tutelage_server.accounts.limits import active_jobs, limits_of, month_of, spent_usd, stored_bytes
from tutelage_server.accounts.schemas import (
    AuditPage,
    KeyMade,
    KeyPage,
    KeyShown,
    LimitsShown,
    Me,
    NewKey,
    UsageOfKey,
    UsageShown,
    show_entry,
    show_key,
)
from tutelage_server.pages import page
from tutelage_server.problems import refused
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Audit, Key, Tenant, Usage, now
from tutelage_server.times import in_utc

Asked = Request[Caller, Any, Any]
Limit = Annotated[int, Parameter(ge=1, le=200, description="How many to show at most.")]


@get("/v1/me", sync_to_thread=True, tags=["accounts"])
def show_me(request: Asked, store: NamedDependency[Store], settings: NamedDependency[Settings]) -> Me:
    """Who calls: the key, its tenant, its scopes and what it may use."""
    caller = request.user
    with store.reading() as session:
        tenant = session.get_one(Tenant, caller.tenant_id)
        limits = limits_of(session, settings.limits, tenant.id)
    shown = msgspec.structs.asdict(limits)
    shown["requests_per_minute"] = caller.requests_per_minute or limits.requests_per_minute
    return Me(
        key_id=caller.key_id,
        tenant_id=tenant.id,
        tenant=tenant.name,
        scopes=sorted(caller.scopes),  # type: ignore[arg-type]
        limits=LimitsShown(**shown),
    )


@get("/v1/keys", guards=[requires("admin")], sync_to_thread=True, tags=["accounts"])
def list_keys(
    request: Asked,
    store: NamedDependency[Store],
    limit: Limit = 50,
    cursor: Annotated[str | None, Parameter(max_length=64, description="Where the page begins.")] = None,
) -> KeyPage:
    """The tenant's keys, newest first, revoked ones too."""
    with store.reading() as session:
        mine = select(Key).where(Key.tenant_id == request.user.tenant_id)
        rows, following = page(session, mine, Key.id, limit, cursor)
    return KeyPage(items=[show_key(row) for row in rows], next=following)


@post("/v1/keys", guards=[requires("admin")], sync_to_thread=True, tags=["accounts"])
def create_key(
    request: Asked, store: NamedDependency[Store], settings: NamedDependency[Settings], data: JSONBody[NewKey]
) -> KeyMade:
    """Make a key. Its text is in this answer and nowhere else."""
    caller = request.user
    expires_at = None if data.expires_at is None else in_utc(data.expires_at, "expires_at")
    if expires_at is not None and expires_at <= now():
        raise refused(422, "expires_at", "has passed", "give a time to come")
    text = ""

    def make(session: Session) -> tuple[int, dict[str, Any]]:
        nonlocal text
        tenant_id = _tenant_for(session, settings, caller, data.tenant)
        most = limits_of(session, settings.limits, tenant_id).requests_per_minute
        if data.requests_per_minute is not None and data.requests_per_minute > most:
            raise refused(422, "requests_per_minute", f"is more than the {most} that are allowed", "make it smaller")
        key, text = make_key(session, tenant_id, data.name, data.scopes, expires_at, data.requests_per_minute)
        return 201, msgspec.to_builtins(show_key(key))

    answer = once(store, caller, idempotency_key(request), body_hash(request, msgspec.json.encode(data)), make)
    if answer.replayed:  # the text is kept nowhere, so it can't be given again
        wrong = f"was made by this request before ({answer.body['id']}), and its text is shown only once"
        raise refused(409, "the key", wrong, "revoke that one and make another", code="key_already_made")
    return msgspec.convert({**answer.body, "key": text}, KeyMade)


@get("/v1/keys/{key_id:str}", guards=[requires("admin")], sync_to_thread=True, tags=["accounts"])
def show_one_key(request: Asked, store: NamedDependency[Store], key_id: FromPath[str]) -> KeyShown:
    """One of the tenant's keys."""
    with store.reading() as session:
        key = session.get(Key, key_id)
    if key is None or key.tenant_id != request.user.tenant_id:
        raise _no_key(key_id)
    return show_key(key)


@delete("/v1/keys/{key_id:str}", guards=[requires("admin")], status_code=200, sync_to_thread=True, tags=["accounts"])
def delete_key(
    request: Asked, store: NamedDependency[Store], keys: NamedDependency[Keys], key_id: FromPath[str]
) -> KeyShown:
    """Revoke a key; it stays in the list, and its jobs go on."""
    with store.writing() as session:
        key = revoke_key(session, request.user.tenant_id, key_id)
        if key is None:
            raise _no_key(key_id)
        shown = show_key(key)
    keys.forget(key_id)
    return shown


@get("/v1/usage", guards=[requires("read")], sync_to_thread=True, tags=["accounts"])
def show_usage(
    request: Asked,
    store: NamedDependency[Store],
    month: Annotated[
        str | None, Parameter(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$", description="A month; this one unless given.")
    ] = None,
) -> UsageShown:
    """What the tenant used in a month, and holds now."""
    tenant_id, month = request.user.tenant_id, month or month_of()
    with store.reading() as session:
        rows = session.scalars(
            select(Usage).where(Usage.tenant_id == tenant_id, Usage.month == month).order_by(Usage.key_id)
        )
        keys = [
            UsageOfKey(
                key_id=row.key_id, requests=row.requests, jobs=row.jobs, gpu_seconds=row.gpu_seconds, usd=row.usd
            )
            for row in rows
        ]
        return UsageShown(
            month=month,
            keys=keys,
            active_jobs=active_jobs(session, tenant_id),
            stored_bytes=stored_bytes(session, tenant_id),
            spent_usd=spent_usd(session, tenant_id, month),
        )


@get("/v1/audit-log", guards=[requires("admin")], sync_to_thread=True, tags=["accounts"])
def list_audit_log(
    request: Asked,
    store: NamedDependency[Store],
    limit: Limit = 50,
    cursor: Annotated[int | None, Parameter(ge=1, le=2**53, description="Where the page begins.")] = None,
    since: Annotated[
        str | None,
        Parameter(
            max_length=40,
            description="Only what happened at or after this time, as ISO 8601 with its offset.",
            schema_extra={"format": "date-time"},
        ),
    ] = None,
) -> AuditPage:
    """Who changed what in this tenant, newest first."""
    mine = select(Audit).where(Audit.tenant_id == request.user.tenant_id)
    if since is not None:
        mine = mine.where(Audit.at >= _time(since))
    with store.reading() as session:
        rows, following = page(session, mine, Audit.id, limit, cursor)
    return AuditPage(items=[show_entry(row) for row in rows], next=following)


def _tenant_for(session: Session, settings: Settings, caller: Caller, named: str | None) -> str:
    """The tenant that a new key is for."""
    own = session.get_one(Tenant, caller.tenant_id)
    if named is None or named == own.name:
        return own.id
    if own.name != settings.operator:
        raise refused(403, "tenant", "can only be named by the operator's keys", "leave it out", code="not_operator")
    return tenant_named(session, named).id


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise refused(400, "query since", f"is no time with its offset ({text})", "write 2026-11-25T08:00:00Z")
    return at


def _no_key(key_id: str) -> Exception:
    return refused(404, "the key", f"no key {key_id[:64]} is yours", "list yours: GET /v1/keys")


ROUTES: list[Any] = [show_me, list_keys, create_key, show_one_key, delete_key, show_usage, list_audit_log]
