"""A real server in a thread of the tests' process, and the command line that calls it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from server_scripts import Answer
from serving import make_key, make_settings, make_store

from tutelage.cli.main import main
from tutelage_server.app import create_app
from tutelage_server.client.client import Client
from tutelage_server.client.servers import KnownServer, remember
from tutelage_server.settings import Settings
from tutelage_server.store.store import Store


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Running:
    """A server that listens."""

    url: str
    key: str
    store: Store
    settings: Settings
    tenant: str = ""

    def client(self, **options: Any) -> Client:
        return Client(KnownServer(url=self.url, key=self.key), **{"patience": 5.0, **options})


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command sees the user's servers, or writes where the tests run."""
    monkeypatch.setenv("TUTELAGE_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path / "runs"))
    for name in ("TUTELAGE_URL", "TUTELAGE_KEY", "TUTELAGE_PATIENCE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tutelage(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call as `tutelage("jobs", "list")`."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(list(arguments))
        captured = capsys.readouterr()
        code = exit_.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for all tests (what checks recipes takes seconds to start); nothing runs its jobs."""
    folder = tmp_path_factory.mktemp("server")
    settings, store = make_settings(folder), make_store(folder)
    config = uvicorn.Config(create_app(settings, store), host="127.0.0.1", port=0, log_level="warning")
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not serving.started and time.monotonic() < until:
        time.sleep(0.01)
    port = serving.servers[0].sockets[0].getsockname()[1]
    yield Running(f"http://127.0.0.1:{port}", "", store, settings)
    serving.should_exit = True
    thread.join(20)
    store.close()


@pytest.fixture
def server(listening: Running) -> Running:
    """The server, with a tenant of the test's own, whose key the command line knows."""
    tenant = uuid.uuid4().hex
    mine = Running(listening.url, make_key(listening.store, tenant), listening.store, listening.settings, tenant)
    remember(mine.url, mine.key)
    return mine


@dataclass
class Scripted:
    """An HTTP server that answers as it was told, in order, the last answer ever after."""

    url: str
    answers: list[Answer]
    seen: list[tuple[str, str, dict[str, str], bytes]]

    def client(self, **options: Any) -> Client:
        return Client(KnownServer(url=self.url, key="tut_a_b"), **{"patience": 5.0, **options})


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that misbehaves on demand."""
    told = Scripted("", [], [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            told.seen.append((self.command, self.path, headers, body))
            answer = told.answers.pop(0) if len(told.answers) > 1 else told.answers[0]
            answer(self)

        do_GET = do_POST = do_DELETE = do_PATCH = do_HEAD = do  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{listening.server_address[1]}"
    yield told
    listening.shutdown()
    listening.server_close()
    thread.join(5)
