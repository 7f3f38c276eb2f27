"""The tables. Times are UTC; ids are `kind-` and a UUIDv7 in hex, so that they sort by age."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

from advanced_alchemy.base import BasicAttributes, create_registry
from advanced_alchemy.types import DateTimeUTC
from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_JSON = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def new_id(kind: str) -> str:
    """A new id: `kind-` and 32 hex digits that begin with the time (RFC 9562, UUIDv7)."""
    stamp = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    number = (stamp << 80) | (0x7 << 76) | ((random >> 68 & 0xFFF) << 64) | (0b10 << 62) | (random & ((1 << 62) - 1))
    return f"{kind}-{number:032x}"


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


class Table(BasicAttributes, DeclarativeBase):
    """Base of all tables."""

    registry = create_registry(
        custom_annotation_map={datetime: DateTimeUTC(timezone=True), dict[str, Any]: _JSON, list[Any]: _JSON}
    )


class Tenant(Table):
    """Who owns files, jobs and keys. `limits` overrides the server's defaults."""

    __tablename__ = "tenant"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    limits: Mapped[dict[str, Any]] = mapped_column(default=dict)
    used: Mapped[float] = mapped_column(default=0.0)
    "Device seconds of ended attempts, halved every day since `used_at`; what fair shares go by."
    used_at: Mapped[datetime] = mapped_column(default=now)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Key(Table):
    """An API key: `tut_<lookup>_<secret>`, of which only an argon2 hash of the secret is kept."""

    __tablename__ = "key"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    lookup: Mapped[str] = mapped_column(String(32), unique=True)
    hash: Mapped[str] = mapped_column(String(200))
    scopes: Mapped[list[Any]] = mapped_column(default=list)
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class StoredFile(Table):
    """A tenant's file. `received` bytes of `bytes` have arrived; it may be used when `status` is processed."""

    __tablename__ = "file"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    name: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str] = mapped_column(String(64), default="")
    purpose: Mapped[str] = mapped_column(String(40), default="")
    status: Mapped[str] = mapped_column(String(20), default="uploading")
    details: Mapped[str] = mapped_column(default="")
    object: Mapped[str] = mapped_column(String(200), default="", index=True)
    "Where its bytes lie in the storage; files with the same bytes may share them."
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]

    __table_args__ = (Index("file_by_hash", "tenant_id", "sha256"),)


class Job(Table):
    """A job. Its state changes in `jobs.states.transition` alone."""

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("key.id"))
    name: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(20), index=True)
    reason: Mapped[str] = mapped_column(default="")
    ended_by: Mapped[str] = mapped_column(String(100), default="")
    wanted: Mapped[str] = mapped_column(String(10), default="run")
    "What people want of it: run, pause or cancel."
    recipe: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    openai: Mapped[dict[str, Any] | None]
    "What an OpenAI client asked for, where one did."
    launcher: Mapped[str] = mapped_column(String(100))
    machine: Mapped[str] = mapped_column(String(255), default="")
    "The machine whose processes its attempts are, where the launcher is local."
    resources: Mapped[dict[str, Any]] = mapped_column(default=dict)
    devices: Mapped[list[Any]] = mapped_column(default=list)
    environment: Mapped[dict[str, Any]] = mapped_column(default=dict)
    secrets: Mapped[list[Any]] = mapped_column(default=list)
    "Names only; the values lie in a file of the job's folder that its owner alone can read."
    priority: Mapped[int] = mapped_column(default=0)
    after: Mapped[list[Any]] = mapped_column(default=list)
    sweep: Mapped[str] = mapped_column(String(64), default="", index=True)
    sweep_index: Mapped[int | None]
    retry_of: Mapped[str] = mapped_column(String(64), default="")
    "The job whose run it goes on with."
    attempt: Mapped[int] = mapped_column(default=0)
    retries: Mapped[int] = mapped_column(default=0)
    "Attempts that failed by the machine's fault and were begun anew."
    max_retries: Mapped[int] = mapped_column(default=3)
    not_before: Mapped[datetime | None]
    handle: Mapped[str] = mapped_column(String(255), default="")
    lease: Mapped[str] = mapped_column(String(64), default="")
    leased_until: Mapped[datetime | None]
    stop_asked_at: Mapped[datetime | None]
    events: Mapped[int] = mapped_column(default=0)
    run_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    "How many bytes of the run's own events have become events of the job."
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    estimate: Mapped[dict[str, Any] | None]
    usd: Mapped[float] = mapped_column(default=0.0)
    "What it may cost at most until it ends, what it cost when it has ended."
    spent_usd: Mapped[float] = mapped_column(default=0.0)
    "What its ended attempts cost."
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    updated_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Event(Table):
    """Something that happened to a job; `number` counts from 1 without a gap."""

    __tablename__ = "event"
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Idempotency(Table):
    """The answer to a POST that created something, for when it is sent again."""

    __tablename__ = "idempotency"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body: Mapped[str] = mapped_column(String(64))
    "SHA-256 of the method, path and body."
    status: Mapped[int | None]
    answer: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class Audit(Table):
    """Who did what, when, from where."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=now, index=True)
    tenant_id: Mapped[str] = mapped_column(String(64), index=True)
    key_id: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(100))
    target: Mapped[str] = mapped_column(String(255), default="")
    status: Mapped[int]
    address: Mapped[str] = mapped_column(String(64), default="")


class Usage(Table):
    """What a tenant used in a month (`2026-11`)."""

    __tablename__ = "usage"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    jobs: Mapped[int] = mapped_column(default=0)
    gpu_seconds: Mapped[float] = mapped_column(default=0.0)
    usd: Mapped[float] = mapped_column(default=0.0)
