"""Reads a multipart form as it comes: its one file goes on in pieces, its fields are small."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException
from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped]
from multipart import parse_options_header as options_of

from tutelage_server.problems import Refused, refused

_MOST_PARTS = 16
_LONGEST_FIELD = 4096


class Form(msgspec.Struct):
    """The fields of a form, and the name of the file that came with it ('' when none did)."""

    fields: dict[str, str] = {}
    filename: str = ""


async def read_form(request: Request[Any, Any, Any], take: Callable[[bytes], Awaitable[None]]) -> Form:
    """Read a form to its end.

    Args:
        take: called with each piece of the file.
    Raises:
        Refused: 400 for what is no such form, 415 for another kind of body.
    """
    kind, options = options_of(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        wrong = "is no multipart/form-data with a boundary"
        raise refused(415, "the header Content-Type", wrong, "send the file as a form, as OpenAI's clients do")
    form, name, value = Form(), "", bytearray()
    try:
        async for part in _parts(request.stream(), options["boundary"]):
            if isinstance(part, MultipartSegment):
                name, value = part.name, bytearray()
                if name == "file":
                    if form.filename:
                        raise _not_a_form("file", "is there more than once")
                    form.filename = part.filename or "file"
            elif part is None:
                if name != "file":
                    form.fields[name] = value.decode("utf-8")
            elif name == "file":
                await take(part)
            else:
                value += part
                if len(value) > _LONGEST_FIELD:
                    raise _not_a_form(name, f"has more than {_LONGEST_FIELD} bytes")
    except InternalServerException:  # what the framework raises when a client leaves
        raise _not_a_form("the form", "ended early") from None
    except (MultipartError, UnicodeDecodeError) as error:
        raise _not_a_form("the form", f"can't be read: {error}") from None
    return form


async def _parts(stream: AsyncIterator[bytes], boundary: str) -> AsyncIterator[MultipartSegment | bytes | None]:
    with PushMultipartParser(boundary, max_segment_count=_MOST_PARTS, strict=True) as parser:
        async for chunk in stream:
            if chunk and not parser.closed:
                for part in parser.parse(chunk):
                    yield bytes(part) if isinstance(part, bytearray | memoryview) else part


def _not_a_form(place: str, wrong: str) -> Refused:
    return refused(400, place, wrong, code="invalid_form")
