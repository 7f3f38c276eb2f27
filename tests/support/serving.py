"""Stores, keys, clients and served processes for tests of the server."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from litestar import Litestar
from litestar.testing import TestClient

from tutelage_server.accounts.caller import SCOPES
from tutelage_server.accounts.keys import make_key as _make_key
from tutelage_server.accounts.keys import tenant_named
from tutelage_server.app import create_app
from tutelage_server.settings import Settings, load_settings
from tutelage_server.store.migrations import upgrade
from tutelage_server.store.store import Store


def make_settings(tmp_path: Path, **options: Any) -> Settings:
    """Settings of a server whose home is below a test's folder."""
    return load_settings(**{"home": str(tmp_path / "home"), "port": 0, **options})


def make_store(tmp_path: Path, url: str = "") -> Store:
    """A store with up-to-date tables: an SQLite file where `make_settings` looks for it, unless a URL is given."""
    store = Store(url or make_settings(tmp_path).database_url)
    upgrade(store)
    return store


def make_key(store: Store, tenant: str = "one", scopes: Any = SCOPES, **fields: Any) -> str:
    """The text of a new key of a tenant, which is made where there is none of that name."""
    with store.writing() as session:
        return _make_key(session, tenant_named(session, tenant).id, "test", scopes, **fields)[1]


def client(
    settings: Settings, store: Store | None = None, key: str | None = None, raises: bool = False
) -> TestClient[Litestar]:
    """A client of an application in this process, with a key of tenant `one` that has every scope.

    Use it in `with`; its store is `client.app.state.store`. `raises` lets the server's own exceptions through.
    """
    if store is None:
        store = Store(settings.database_url)
        upgrade(store)
    made: TestClient[Litestar] = TestClient(
        create_app(settings, store), base_url="http://127.0.0.1", raise_server_exceptions=raises
    )
    made.headers["authorization"] = f"Bearer {key or make_key(store)}"
    return made


@dataclass
class Served:
    """A server in processes of its own."""

    url: str
    key: str
    process: subprocess.Popen[str]
    home: Path
    config: Path
    "What `$TUTELAGE_CONFIG` is for it: its first key is kept there."

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        """The server, then its dispatcher (where one lives)."""
        return [self.pid, *children(self.pid)]

    def client(self, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, **options)

    def kill(self) -> None:
        """End the server as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask the server to end, as a supervisor does; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def children(pid: int) -> list[int]:
    """The live children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return sorted(found)


def start(tmp_path: Path, arguments: tuple[str, ...] = (), environment: Any = None, **settings: Any) -> Served:
    """Start `tutelage serve` on a free port and wait until it answers; call it again to start it anew."""
    file = tmp_path / "server.json"
    file.write_text(json.dumps({"home": str(tmp_path / "home"), "port": 0, **settings}))
    config = tmp_path / "config"
    command = [sys.executable, "-m", "tutelage", "serve", "--settings", str(file), "--json", *arguments]
    environment = {**os.environ, "TUTELAGE_CONFIG": str(config), **(environment or {})}
    log = (tmp_path / "server.log").open("a")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    log.close()
    started = json.loads(_line(process, 60) or "{}")
    if "url" not in started:
        process.kill()
        process.wait()
        raise AssertionError(f"the server did not start: {started}\n{(tmp_path / 'server.log').read_text()[-4000:]}")
    servers = json.loads((config / "servers.json").read_text())
    key = servers["servers"][servers["default"]]["key"]
    return Served(started["url"], key, process, tmp_path / "home", config)


@contextlib.contextmanager
def served(
    tmp_path: Path, arguments: tuple[str, ...] = (), environment: Any = None, **settings: Any
) -> Iterator[Served]:
    """A real `tutelage serve` on a free port of 127.0.0.1, with its first key; ended when the block ends."""
    server = start(tmp_path, arguments, environment, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
        if server.process.stdout:
            server.process.stdout.close()


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """The first line that a process prints; empty when it ends or takes too long."""
    assert process.stdout is not None
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if select.select([process.stdout], [], [], 0.2)[0]:
            return process.stdout.readline()
    return ""
