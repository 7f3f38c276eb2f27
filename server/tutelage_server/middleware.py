"""What every request passes before its handler: the right address, a body of bearable size, depth and speed, tags."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import anyio
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from tutelage_server.problems import Refused, refused
from tutelage_server.settings import Settings

LARGEST_BODY = 1_000_000
"Bytes of a body, where a handler takes no more (`request_max_body_size`)."
LARGEST_HEAD = 32_768
"Bytes of all headers together."
DEEPEST_BODY = 64
"How deep lists and mappings of a JSON body may lie in each other."

_BODY_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_JSON_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class OwnAddress(ASGIMiddleware):
    """Refuses requests whose Host or Origin is another's, so that no web page can reach a server by a name of its own
    (DNS rebinding). A Host that is an IP address is no name, and passes on a server that listens publicly."""

    scopes = (ScopeType.HTTP, ScopeType.WEBSOCKET)

    def __init__(self, settings: Settings) -> None:
        own = {"localhost", "127.0.0.1", "::1", settings.host}
        if settings.is_public:
            own |= {socket.gethostname(), socket.getfqdn(), settings.machine_name}
        self._own = {name.lower() for name in (*own, *settings.hosts)}
        self._public = settings.is_public

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Look at both headers, and go on.

        Raises:
            Refused: 403, 400 when the address or the headers are made to be misread, 431 when they are too large.
        """
        _check_head(scope)
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_own(f"//{hosts[0].decode('latin-1')}"):
            shown = hosts[0].decode("latin-1") if hosts else "missing"
            fix = "call the server by its own address, or add the name to its setting `hosts`"
            raise refused(403, "the header Host", f"is not this server's ({shown[:100]})", fix, code="foreign_host")
        for origin in (value for name, value in scope["headers"] if name == b"origin"):
            if urlsplit(origin.decode("latin-1")).netloc.lower() != hosts[0].decode("latin-1").lower():
                wrong = f"is another site's ({origin.decode('latin-1')[:100]})"
                raise refused(
                    403, "the header Origin", wrong, "call from the server's own pages", code="foreign_origin"
                )
        await next_app(scope, receive, send)

    def _is_own(self, address: str) -> bool:
        try:
            host = urlsplit(address).hostname or ""
        except ValueError:
            return False
        return host.lower() in self._own or (self._public and _is_ip(host))


class Bodies(ASGIMiddleware):
    """Reads bodies before handlers do, within a size, a depth and a time. Handlers that take larger ones
    (`request_max_body_size`) stream them: there, it is a pause that may not last too long."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Read or watch the body, and go on.

        Raises:
            Refused: 400, 408, 413 or 415.
        """
        if scope.get("method") not in _BODY_METHODS:
            await next_app(scope, receive, send)
            return
        encoding = next((value for name, value in scope["headers"] if name == b"content-encoding"), b"identity")
        if encoding.strip().lower() != b"identity":
            raise refused(415, "the body", f"is encoded ({encoding.decode('latin-1')[:40]})", "send it as it is")
        handler: Any = scope["route_handler"]
        largest = handler.resolve_request_max_body_size()
        if largest is None or largest > LARGEST_BODY:
            await next_app(scope, self._watched(receive), send)
            return
        body = await self._read(scope, receive, largest)
        if not _is_utf8(body):
            raise refused(400, "the body", "is not UTF-8 text", "send JSON in UTF-8")
        check_depth(body)
        if b"u0000" in body and _NUL.search(body):
            raise refused(400, "the body", "holds a NUL character (\\u0000)", "leave it out")
        await next_app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive, largest: int) -> bytes:
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced[:20]) > largest:
            raise _too_large(largest)
        parts, size = [], 0
        try:
            with anyio.fail_after(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise refused(400, "the body", "ended early", "send it whole")
                    parts.append(message["body"])
                    size += len(message["body"])
                    if size > largest:
                        raise _too_large(largest)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise self._too_slow() from None

    def _watched(self, receive: Receive) -> Any:
        whole = False

        async def watched() -> Any:
            nonlocal whole
            if whole:  # what comes now is that the client leaves, which may take as long as it likes
                return await receive()
            try:
                with anyio.fail_after(self._seconds):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return watched

    def _too_slow(self) -> Refused:
        wrong = f"did not come within {self._seconds:g} s"
        return refused(408, "the body", wrong, "send it faster, or in parts", headers={"connection": "close"})


class Tags(ASGIMiddleware):
    """Gives answers to GET that are whole JSON documents an ETag, and answers 304 to who has them already."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Go on, and tag the answer."""
        if scope.get("method") != "GET":
            await next_app(scope, receive, send)
            return
        start: Any = None

        async def tagged(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_whole_json(message):
                start = message
                return
            if start is None or message["type"] != "http.response.body":
                await send(message)
                return
            begun, start = start, None
            if not message.get("more_body", False):
                tag = b'"' + hashlib.blake2b(message["body"], digest_size=16).hexdigest().encode() + b'"'
                headers = [*begun["headers"], (b"etag", tag)]
                if tag in _known_tags(scope):
                    headers = [each for each in headers if each[0] not in (b"content-length", b"content-type")]
                    begun["status"], message["body"] = 304, b""
                begun["headers"] = headers
            await send(begun)
            await send(message)

        await next_app(scope, receive, tagged)


def _check_head(scope: Scope) -> None:
    if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
        raise refused(400, "the address", "holds a NUL character (%00)", "leave it out")
    names = [name for name, _ in scope["headers"]]
    if b"content-length" in names and b"transfer-encoding" in names:
        wrong = "are there both, and servers on the way may take one or the other"
        raise refused(400, "Content-Length and Transfer-Encoding", wrong, "send one of them")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEAD:
        raise refused(431, "the headers", f"are larger than {LARGEST_HEAD} bytes", "send fewer")


def check_depth(body: bytes) -> None:
    """Refuse JSON whose lists and mappings lie too deep in each other, before anything walks down into them.

    Raises:
        Refused: 400
    """
    if body.count(b"[") + body.count(b"{") <= DEEPEST_BODY:
        return
    depth = 0
    for token in _JSON_TOKENS.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            if depth > DEEPEST_BODY:
                raise refused(400, "the body", f"is nested deeper than {DEEPEST_BODY} levels", "make it flatter")
        elif first in b"]}":
            depth -= 1


def _replay(body: bytes, receive: Receive) -> Any:
    """What receives a body that was read already, then whatever else comes."""
    given = False

    async def replay() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _too_large(largest: int) -> Refused:
    wrong = f"is larger than the {largest} bytes that this address takes"
    return refused(413, "the body", wrong, "send files to /v1/files", code="too_large", headers={"connection": "close"})


def _is_whole_json(message: Any) -> bool:
    if message["status"] != 200:
        return False
    headers: Iterable[tuple[bytes, bytes]] = message["headers"]
    names = dict(headers)
    return b"etag" not in names and names.get(b"content-type", b"").startswith(b"application/json")


def _known_tags(scope: Scope) -> list[bytes]:
    values = [value for name, value in scope["headers"] if name == b"if-none-match"]
    return [tag.strip().removeprefix(b"W/") for value in values for tag in value.split(b",")]


def _is_utf8(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
