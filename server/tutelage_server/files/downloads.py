"""Answers that are bytes: whole or a range of them (RFC 9110, section 14), with an ETag that is their hash."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from urllib.parse import quote

from anyio.to_thread import run_sync
from litestar import Request, Response
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

from tutelage_server.problems import refused

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


class Unsatisfiable(Exception):
    """A range that begins after the end."""


def download(
    request: Request[Any, Any, Any],
    name: str,
    size: int,
    sha256: str,
    read: Callable[[int, int], Iterator[bytes]],
) -> Response[bytes] | Stream:
    """The answer to a GET of bytes.

    Args:
        read: gives the bytes from one offset up to another; called in a thread, as its blocks are.
    Raises:
        Refused: 416
    """
    tag = f'"{sha256}"'
    headers = {"etag": tag, "accept-ranges": "bytes"}
    if tag in [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]:
        return Response(b"", status_code=304, headers=headers)
    headers["content-disposition"] = disposition(name)
    asked = request.headers.get("range", "")
    if request.headers.get("if-range", tag) != tag:
        asked = ""
    try:
        start, end = byte_range(asked, size) or (0, size)
    except Unsatisfiable:
        wrong, fix = f"asks for nothing of {size} bytes", "ask for bytes that are there"
        raise refused(416, "the header Range", wrong, fix, headers={"content-range": f"bytes */{size}"}) from None
    partial = (start, end) != (0, size)
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    content = _threaded(read, start, end)
    return Stream(
        content,
        status_code=206 if partial else 200,
        media_type="application/octet-stream",
        headers=headers,
        background=BackgroundTask(content.aclose),
    )


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """The one range that a header asks for, as offsets from and up to; None for the whole (also of what is malformed,
    and of several ranges at once, which a server may leave out of account).

    Raises:
        Unsatisfiable
    """
    match = _RANGE.fullmatch(header)
    if match is None or match[0] == "" or (not match[1] and not match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), size
        if match[2]:
            if int(match[2]) < start:
                return None
            end = min(size, int(match[2]) + 1)
    if start >= size or start >= end:
        raise Unsatisfiable
    return start, end


def disposition(name: str) -> str:
    """Content-Disposition for a name of any characters: kept on disk, not shown (RFC 6266, RFC 8187)."""
    plain = "".join(each if each.isascii() and each.isprintable() and each not in '"\\%;' else "_" for each in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


async def _threaded(read: Callable[[int, int], Iterator[bytes]], start: int, end: int) -> AsyncGenerator[bytes, None]:
    blocks = read(start, end)
    try:
        while block := await run_sync(next, blocks, b""):
            yield block
    finally:
        if close := getattr(blocks, "close", None):
            await run_sync(close)
