"""What requests and answers about keys, usage and the audit log look like."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tutelage_server.store.tables import Audit, Key

Scope = Literal["advise", "submit", "read", "rank", "admin"]


class Me(msgspec.Struct, kw_only=True):
    """Who calls."""

    key_id: Annotated[str, Meta(description="The key's id.")]
    tenant_id: Annotated[str, Meta(description="The id of the tenant whose files and jobs it reaches.")]
    tenant: Annotated[str, Meta(description="The tenant's name.")]
    scopes: Annotated[list[Scope], Meta(description="What the key may do.")]
    limits: Annotated[LimitsShown, Meta(description="What the key and its tenant may use.")]


class LimitsShown(msgspec.Struct, kw_only=True):
    """Rates and quotas; null is without limit."""

    requests_per_minute: Annotated[int, Meta(description="Requests of this key a minute.")]
    file_bytes: Annotated[int, Meta(description="Largest file.")]
    stored_bytes: Annotated[int, Meta(description="All files of the tenant together.")]
    active_jobs: Annotated[int, Meta(description="Jobs that are queued or run.")]
    job_usd: Annotated[float | None, Meta(description="Dearest job.")]
    month_usd: Annotated[float | None, Meta(description="What the jobs of a month may cost.")]


class KeyShown(msgspec.Struct, kw_only=True):
    """A key, without its secret."""

    id: Annotated[str, Meta(description="The key's id.")]
    name: Annotated[str, Meta(description="What people call it.")]
    begins: Annotated[str, Meta(description="How its text begins, to tell it from others.")]
    scopes: Annotated[list[Scope], Meta(description="What it may do.")]
    requests_per_minute: Annotated[int | None, Meta(description="Its own rate; null is the server's.")]
    created_at: Annotated[datetime, Meta(description="When it was made.")]
    expires_at: Annotated[datetime | None, Meta(description="When it stops working.")]
    revoked_at: Annotated[datetime | None, Meta(description="When it was revoked.")]
    last_used_at: Annotated[datetime | None, Meta(description="When it was used last, within some seconds.")]


class KeyMade(KeyShown, kw_only=True):
    """A new key."""

    key: Annotated[str, Meta(description="The key itself, which is shown now and never again.")]


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a new key is to be."""

    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]*$", description="What to call it.")]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=10, description="What it may do.")]
    expires_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="When it stops working; null is never.")
    ] = None
    requests_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None, Meta(description="Its own rate, at most the server's.")
    ] = None
    tenant: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]*$")] | None,
        Meta(description="The tenant it is for, which is made where there is none; only the operator's keys may."),
    ] = None


class KeyPage(msgspec.Struct, kw_only=True):
    """Keys, newest first."""

    items: Annotated[list[KeyShown], Meta(description="The keys of this page.")]
    next: Annotated[str | None, Meta(description="The `cursor` of the next page; null at the end.")]


class UsageOfKey(msgspec.Struct, kw_only=True):
    """What one key used in a month."""

    key_id: Annotated[str, Meta(description="The key.")]
    requests: Annotated[int, Meta(description="Requests, within some seconds.")]
    jobs: Annotated[int, Meta(description="Jobs that were submitted.")]
    gpu_seconds: Annotated[float, Meta(description="GPU time of its jobs.")]
    usd: Annotated[float, Meta(description="What its jobs cost.")]


class UsageShown(msgspec.Struct, kw_only=True):
    """What a tenant used in a month, and holds now."""

    month: Annotated[str, Meta(description="The month, in UTC.")]
    keys: Annotated[list[UsageOfKey], Meta(description="By key.")]
    active_jobs: Annotated[int, Meta(description="Jobs that have not ended.")]
    stored_bytes: Annotated[int, Meta(description="What its files take.")]
    spent_usd: Annotated[float, Meta(description="Cost of the month's jobs, with the most that active ones may cost.")]


class AuditEntry(msgspec.Struct, kw_only=True):
    """One request that changed something, or wanted to."""

    id: Annotated[int, Meta(description="Its number.")]
    at: Annotated[datetime, Meta(description="When.")]
    key_id: Annotated[str, Meta(description="By which key.")]
    action: Annotated[str, Meta(description="Method and path.")]
    target: Annotated[str, Meta(description="What the path named.")]
    status: Annotated[int, Meta(description="How it was answered.")]
    address: Annotated[str, Meta(description="From where it came.")]


class AuditPage(msgspec.Struct, kw_only=True):
    """Entries of the audit log, newest first."""

    items: Annotated[list[AuditEntry], Meta(description="The entries of this page.")]
    next: Annotated[int | None, Meta(description="The `cursor` of the next page; null at the end.")]


def show_key(key: Key) -> KeyShown:
    """A key as it is shown."""
    return KeyShown(
        id=key.id,
        name=key.name,
        begins=f"tut_{key.lookup}_",
        scopes=key.scopes,
        requests_per_minute=key.requests_per_minute,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def show_entry(entry: Audit) -> AuditEntry:
    """An entry of the audit log as it is shown."""
    return AuditEntry(
        id=entry.id,
        at=entry.at,
        key_id=entry.key_id,
        action=entry.action,
        target=entry.target,
        status=entry.status,
        address=entry.address,
    )
