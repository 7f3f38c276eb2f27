"""A server as processes: this one answers requests, and a child of its own, the dispatcher, runs the jobs."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvicorn
from sqlalchemy import func, select

from tutelage.errors import TutelageError
from tutelage_server.accounts.caller import SCOPES
from tutelage_server.accounts.keys import make_key, tenant_named
from tutelage_server.app import create_app
from tutelage_server.settings import PREFIX, Settings
from tutelage_server.store.migrations import upgrade
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Key

_log = logging.getLogger(__name__)

_LIBC = ctypes.CDLL(None)
_PARENT_DEATH_SIGNAL = 1
_STOP_SECONDS = 10.0
_STREAM_SECONDS = 3
"How long open streams may go on once the server is asked to end; their readers come back to the next one."
_LONG_LIFE = 60.0
"A dispatcher that lived so long is started anew at once."


def open_store(settings: Settings) -> Store:
    """The store of a server, with up-to-date tables; `home` is made where there is none.

    Raises:
        StoreUnavailable
        TutelageError: when `home` can't be made.
    """
    try:
        settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise TutelageError.at("home", f"{settings.folder} can't be made: {error.strerror}", "name another") from None
    store = Store(settings.database_url)
    upgrade(store)
    return store


def first_key(settings: Settings, store: Store) -> str | None:
    """On a server that only this machine reaches and that has no key yet: one with every scope; otherwise None.

    Raises:
        TutelageError: when others reach the server, and no key is there.
    """
    with store.deciding("first key") as session:
        if session.scalar(select(func.count()).select_from(Key)):
            return None
        if settings.is_public:
            fix = "make the first one: tutelage serve --make-key NAME, with the same settings"
            raise TutelageError.at("keys", f"there are none, and {settings.host} is a public address", fix)
        return make_key(session, tenant_named(session, settings.operator).id, "first key", SCOPES)[1]


def check_address(settings: Settings) -> None:
    """Refuse to listen where keys would travel in the open.

    Raises:
        TutelageError
    """
    if bool(settings.certificate) != bool(settings.certificate_key):
        raise TutelageError.at("certificate", "a certificate and its key belong together", "set both or neither")
    for name in filter(None, (settings.certificate, settings.certificate_key)):
        if not Path(name).is_file():
            raise TutelageError.at("certificate", f"no such file: {name}", "give the path of a PEM file")
    if settings.certificate:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.certificate_key)
        except OSError as error:  # ssl.SSLError is one
            wrong = f"{settings.certificate} and {settings.certificate_key} can't be used: {error}"
            raise TutelageError.at("certificate", wrong, "give PEM files that belong together") from None
    if settings.is_public and not settings.certificate and not settings.allow_plain_http:
        wrong = f"{settings.host} is a public address, and without TLS keys can be read on the way"
        fix = "set certificate and certificate_key, or allow_plain_http behind a proxy that has TLS"
        raise TutelageError.at("host", wrong, fix)


def listen(settings: Settings) -> tuple[socket.socket, str]:
    """A socket on the address, and the URL by which it is called.

    Raises:
        TutelageError: when the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Only of a socket that says TCP does asyncio take Nagle's delay away, which costs 40 ms an answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        wrong = f"can't listen on {settings.host}:{settings.port}: {error.strerror}"
        raise TutelageError.at("port", wrong, "choose another with --port, or end what listens there") from None
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    scheme = "https" if settings.certificate else "http"
    return listening, f"{scheme}://{host}:{listening.getsockname()[1]}"


def serve(
    settings: Settings, store: Store, listening: socket.socket, dispatcher: bool, started: Callable[[], None]
) -> None:
    """Answer requests until a signal ends it (SIGTERM, SIGINT). Jobs that run go on without the server.

    Args:
        dispatcher: whether to run one as a child, and to start it anew when it dies.
        started: called once requests are answered.
    """
    config = uvicorn.Config(
        create_app(settings, store),
        log_config=None,
        access_log=False,
        proxy_headers=False,  # who calls is who is connected, whatever a header says
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=_STREAM_SECONDS,
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=settings.certificate_key or None,
    )
    before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGTERM, signal.SIGINT)}
    try:  # uvicorn raises the signal again when it has ended, and what follows here must still run
        asyncio.run(_serve(uvicorn.Server(config), settings, listening, dispatcher, started))
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        store.close()


async def _serve(
    server: uvicorn.Server,
    settings: Settings,
    listening: socket.socket,
    dispatcher: bool,
    started: Callable[[], None],
) -> None:
    tasks = [asyncio.create_task(_announce(server, started))]
    if dispatcher:
        tasks.append(asyncio.create_task(_keep_dispatcher(settings)))
    try:
        await server.serve(sockets=[listening])
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                _log.error("a part of the server failed", exc_info=result)


async def _announce(server: uvicorn.Server, started: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.02)
    started()


async def _keep_dispatcher(settings: Settings) -> None:
    """Run the dispatcher, and start it anew when it dies: at once at first, then after ever longer pauses."""
    file, pause = settings_file(settings), 0.5
    while True:
        begun, child = time.monotonic(), _start_dispatcher(file)
        try:
            while child.poll() is None:
                await asyncio.sleep(0.1)
        finally:
            if child.poll() is None:
                await _stop(child)
        pause = 0.5 if time.monotonic() - begun > _LONG_LIFE else min(pause * 2, 30.0)
        _log.error("the dispatcher ended (%s); it is started anew in %.0f s", child.returncode, pause)
        await asyncio.sleep(pause)


async def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    until = time.monotonic() + _STOP_SECONDS
    while child.poll() is None and time.monotonic() < until:
        await asyncio.sleep(0.05)
    if child.poll() is None:
        child.kill()
        child.wait()


def settings_file(settings: Settings) -> Path:
    """Where the dispatcher reads its settings: a file of this process, which only its user can read."""
    file = settings.folder / "dispatcher.json"
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(msgspec.json.encode(msgspec.structs.replace(settings, home=str(settings.folder))))
    beside.replace(file)
    return file


def _start_dispatcher(file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tutelage_server.jobs.dispatcher", "--settings", str(file)]
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before
            os._exit(1)

    # The file holds what these variables said and what options said otherwise.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    # A session of its own, so that Ctrl-C reaches the server alone, which ends the dispatcher in its turn.
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent
    )
