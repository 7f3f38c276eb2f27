"""What requests and answers about files look like."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tutelage_server.store.tables import StoredFile

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Purpose = Annotated[str, Meta(pattern="^[a-z0-9_-]{0,40}$")]
Status = Literal["uploading", "processed", "error"]


class NewFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A file that is to be sent."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            description="Its name, whose ending tells how it is read.",
            examples=["rows.jsonl"],
        ),
    ]
    bytes: Annotated[int, Meta(ge=0, le=2**53, description="Its size.", examples=[1048576])]
    sha256: Annotated[
        Sha256 | None, Meta(description="Its SHA-256 in hex; what the tenant has already need not be sent again.")
    ] = None
    purpose: Annotated[Purpose, Meta(description="What it is for, in a word of your own.")] = ""
    expires_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None, Meta(description="When it is to be deleted; null keeps it.")
    ] = None


class FileShown(msgspec.Struct, kw_only=True):
    """A file."""

    id: Annotated[str, Meta(description="Its id; recipes name it `file:ID`.")]
    name: Annotated[str, Meta(description="What it was called where it came from.")]
    bytes: Annotated[int, Meta(description="Its size.")]
    received: Annotated[int, Meta(description="How many bytes have arrived; HEAD of its content is exact.")]
    sha256: Annotated[
        str, Meta(description="SHA-256 in hex; of an upload that was announced without: empty until its end.")
    ]
    purpose: Annotated[str, Meta(description="What it is for.")]
    status: Annotated[Status, Meta(description="It may be used when it is processed.")]
    details: Annotated[str, Meta(description="What went wrong, where something did.")]
    created_at: Annotated[datetime, Meta(description="When it was announced.")]
    expires_at: Annotated[datetime | None, Meta(description="When it will be deleted.")]


class FilePage(msgspec.Struct, kw_only=True):
    """Files, newest first."""

    items: Annotated[list[FileShown], Meta(description="The files of this page.")]
    next: Annotated[str | None, Meta(description="The `cursor` of the next page; null at the end.")]


def show_file(file: StoredFile) -> FileShown:
    """A file as it is shown."""
    return FileShown(
        id=file.id,
        name=file.name,
        bytes=file.bytes,
        received=file.received,
        sha256=file.sha256,
        purpose=file.purpose,
        status=file.status,  # type: ignore[arg-type]
        details=file.details,
        created_at=file.created_at,
        expires_at=file.expires_at,
    )
