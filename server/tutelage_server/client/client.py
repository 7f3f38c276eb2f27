"""A client of the server that lives through lost connections: it tries again what may be sent twice.

GETs, and POSTs (which always carry an Idempotency-Key), are sent again after a lost connection, 429 and 503, with waits
that double and that obey Retry-After. What the server refuses is raised with the server's own sentences.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from tutelage.errors import Problem, TutelageError
from tutelage_server.client.servers import KnownServer

PATIENCE = 120.0
"Seconds for which a server that is gone is waited for, unless $TUTELAGE_PATIENCE says otherwise."
LONGEST_WAIT = 10.0
LONGEST_SAID = 120.0
"Seconds of a Retry-After that are obeyed at most."
SILENCE = 60.0
"Seconds without a byte after which a connection counts as lost; event streams send a comment more often."
AGAIN = frozenset({429, 502, 503, 504})
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_PAST_PROXIES: dict[str, httpx.BaseTransport | None] = {"http://": None, "https://": None}
"No proxy of the environment leads to this machine."


class ConnectionLost(TutelageError):
    """The server can't be reached, or isn't able to answer now. It says nothing of the jobs, which go on."""

    exit_code = 5


class ServerRefused(TutelageError):
    """What the server refused, in its own sentences."""

    def __init__(self, status: int, problems: list[Problem], code: str = "") -> None:
        super().__init__(problems)
        self.status, self.code = status, code
        self.exit_code = 1 if status >= 500 else 2


class Message(msgspec.Struct, frozen=True):
    """One message of an event stream (WHATWG, Server-sent events)."""

    id: str
    event: str
    data: str


class Client:
    """Calls one server. Use as a context manager, or close it.

    Args:
        patience: seconds for which a request is tried again; a server that never answered is given up sooner.
        transport: instead of the network, for tests.
        waiting: called with a sentence when there is something to wait for.

    Raises:
        TutelageError: when the address or the key can't be one, or $TUTELAGE_PATIENCE is no number.
    """

    def __init__(
        self,
        server: KnownServer,
        *,
        patience: float | None = None,
        transport: httpx.BaseTransport | None = None,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = _checked(server.url)
        self.patience = _patience() if patience is None else patience
        self.waiting = waiting
        self._answered = False
        headers = {"user-agent": "tutelage", "accept": "application/json"}
        if server.key:
            headers["authorization"] = f"Bearer {_sendable(server.key)}"
        self.http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(SILENCE, connect=10.0),
            transport=transport,
            mounts=_PAST_PROXIES if urlsplit(self.url).hostname in LOCAL_HOSTS else None,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON at a path; parameters that are None are left out.

        Raises:
            ServerRefused, ConnectionLost
        """
        return _json(self.request("GET", path, params=params))

    def post(self, path: str, body: Any = None, key: str = "", **params: Any) -> Any:
        """Send JSON; the same key (a new one by default) makes one thing however often it is sent.

        Raises:
            ServerRefused, ConnectionLost
        """
        headers = {"idempotency-key": key or uuid.uuid4().hex}
        return _json(self.request("POST", path, params=params, body=body, headers=headers))

    def delete(self, path: str) -> None:
        """Remove what is at a path; that it is gone already, when a lost request is tried again, is no error.

        Raises:
            ServerRefused, ConnectionLost
        """
        self.request("DELETE", path)

    def pages(self, path: str, limit: int | None = None, **params: Any) -> Iterator[dict[str, Any]]:
        """The items of a list, over all its pages, at most `limit`."""
        cursor: str | None = None
        while limit is None or limit > 0:
            page = self.get(path, cursor=cursor, limit=min(limit or 200, 200), **params)
            yield from page["items"]
            limit = None if limit is None else limit - len(page["items"])
            cursor = page.get("next")
            if not cursor:
                return

    def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        again: bool = True,
    ) -> httpx.Response:
        """Send a request, again if need be, and return an answer that is no refusal.

        Raises:
            ServerRefused, ConnectionLost
            TutelageError: when what is to be sent is no text.
        """
        headers = dict(headers or {})
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            encoded = msgspec.json.encode(body)
            msgspec.json.encode(given)
        except UnicodeEncodeError:
            raise TutelageError.at(path, "what is to be sent holds bytes that are no text (UTF-8)") from None
        if body is not None:
            content = encoded
            headers["content-type"] = "application/json"
        waits = Waits(self)
        while True:
            try:
                answer = self.http.request(method, path, params=given, content=content, headers=headers)
            except httpx.TransportError as error:
                if not again:
                    raise self.lost(error) from error
                waits.after(self.lost(error))
                continue
            self._answered = True
            if answer.is_success or answer.status_code == 304:
                return answer
            if method == "DELETE" and answer.status_code == 404 and waits.tried:
                return answer
            refusal = refusal_of(answer)
            if not again or not _may_change(answer):
                raise refusal
            waits.after(refusal, answer)

    @contextlib.contextmanager
    def stream(self, path: str, headers: dict[str, str] | None = None, **params: Any) -> Iterator[httpx.Response]:
        """An answer whose body is read as it comes; sent once.

        Raises:
            ServerRefused, ConnectionLost: also when the body breaks off.
        """
        given = {name: value for name, value in params.items() if value is not None}
        try:
            with self.http.stream("GET", path, params=given, headers=headers) as answer:
                self._answered = True
                if not answer.is_success:
                    answer.read()
                    raise refusal_of(answer)
                yield answer
        except httpx.TransportError as error:
            raise self.lost(error) from error

    def messages(self, path: str, last: int = 0, **params: Any) -> Iterator[Message]:
        """The messages of an event stream, those after `last`, until it ends.

        Raises:
            ServerRefused, ConnectionLost: when it breaks off; go on after the last message's id.
        """
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if last:
            headers["last-event-id"] = str(last)
        with self.stream(path, headers, **params) as answer:
            yield from _messages(answer.iter_lines())

    def lost(self, error: httpx.TransportError) -> ConnectionLost:
        """A lost connection as a sentence."""
        said = str(error) or type(error).__name__
        fix = "jobs go on without it; try again later"
        if "WRONG_VERSION_NUMBER" in said:
            fix = "it has no TLS: give its address as http://…"
        elif "CERTIFICATE_VERIFY_FAILED" in said:
            fix = "let $SSL_CERT_FILE name the authority that signed its certificate"
        elif not self._answered:
            fix = "is the address right, and does it run? jobs go on without it"
        return ConnectionLost.at(self.url, f"can't be reached: {said}", fix)

    @property
    def enough(self) -> float:
        """Seconds for which to try again: a server that never answered may well be no server."""
        return self.patience if self._answered else min(self.patience, 3.0)


class Waits:
    """The waits between the tries of one request: 0.25 s, doubling, with some randomness; never over the patience."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._began = clock()
        self._next = 0.25
        self.tried = 0

    def after(self, error: TutelageError, answer: httpx.Response | None = None) -> None:
        """Wait before the next try, or raise `error` when that has taken long enough."""
        self.tried += 1
        said = _said(answer) if answer is not None else None
        wait = random.uniform(0.5, 1.0) * self._next if said is None else min(said, LONGEST_SAID)
        self._next = min(self._next * 2, LONGEST_WAIT)
        if self._clock() - self._began + wait > self._client.enough:
            if answer is not None and isinstance(error, ServerRefused) and answer.status_code != 409:
                raise ConnectionLost(error.problems) from error
            raise error
        if self.tried == 2:
            self._client.waiting(f"{error.problems[0].place}: {error.problems[0].wrong}; trying again")
        time.sleep(wait)


def segment(text: str) -> str:
    """Text as one segment of a path.

    Raises:
        TutelageError: for what would lead elsewhere.
    """
    try:
        if text not in ("", ".", ".."):
            return quote(text, safe="")
    except UnicodeEncodeError:
        pass
    raise TutelageError.at(repr(text), "is no id", "list what there is: tutelage jobs list, tutelage files list")


def refusal_of(answer: httpx.Response) -> ServerRefused:
    """What a problem document says; other servers' pages become a sentence too."""
    place = urlsplit(str(answer.request.url)).path
    try:
        document = msgspec.json.decode(answer.content)
        problems = msgspec.convert(document.get("problems") or [], list[Problem])
        code, detail = str(document.get("code", "")), str(document.get("detail", ""))
        instance = document.get("instance", "")
    except (msgspec.MsgspecError, AttributeError):
        problems, code, detail, instance = [], "", "", ""
    if not problems:
        wrong = detail or f"the server answered {answer.status_code} {answer.reason_phrase}".rstrip()
        fix = f"its log has more under {instance}" if instance and answer.status_code >= 500 else ""
        problems = [Problem(place=place, wrong=wrong, fix=fix)]
    return ServerRefused(answer.status_code, problems, code)


def _may_change(answer: httpx.Response) -> bool:
    """Whether the same request may be answered otherwise in a moment."""
    return answer.status_code in AGAIN or (answer.status_code == 409 and "retry-after" in answer.headers)


def _said(answer: httpx.Response) -> float | None:
    """Retry-After in seconds: a number, or a date (RFC 9110, 10.2.3)."""
    text = answer.headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _json(answer: httpx.Response) -> Any:
    if not answer.content:
        return None
    try:
        return msgspec.json.decode(answer.content)
    except msgspec.DecodeError as error:
        place = urlsplit(str(answer.request.url)).path
        raise TutelageError.at(place, f"the answer is no JSON: {error}", "is that a Tutelage server?") from None


def _messages(lines: Iterator[str]) -> Iterator[Message]:
    last, event, data = "", "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield Message(last, event or "message", "\n".join(data))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id":
            last = value


def _patience() -> float:
    """What $TUTELAGE_PATIENCE says."""
    text = os.environ.get("TUTELAGE_PATIENCE") or str(PATIENCE)
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise TutelageError.at("$TUTELAGE_PATIENCE", f"is {text!r}", "give seconds, such as 120")


def _sendable(key: str) -> str:
    """A key as a header takes it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise TutelageError.at("the key", "holds characters that no key has", "copy it whole, and nothing else")
    return key


def _checked(url: str) -> str:
    shown = url.rpartition("@")[2] or "the server's address"  # without a password
    try:
        parts = urlsplit(url)
        httpx.URL(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, httpx.InvalidURL):  # a port or an IPv6 address that is none
        is_one = False
    if not is_one:
        raise TutelageError.at(shown, "is no address", "give one like https://host:8790")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise TutelageError.at(shown, "the address holds more than a host and a path", "give the key by --key")
    return url.rstrip("/")
