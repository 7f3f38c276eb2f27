"""A real server in a thread of the tests' process, and the command line that calls it."""

from __future__ import annotations

import json
import threading
import time
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
from tutelage_server.client import Client
from tutelage_server.servers import KnownServer, remember
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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server whose key the command line knows; nothing runs its jobs."""
    settings, store = make_settings(tmp_path), make_store(tmp_path)
    config = uvicorn.Config(create_app(settings, store), host="127.0.0.1", port=0, log_level="warning")
    listening = uvicorn.Server(config)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not listening.started and time.monotonic() < until:
        time.sleep(0.01)
    port = listening.servers[0].sockets[0].getsockname()[1]
    running = Running(f"http://127.0.0.1:{port}", make_key(store), store, settings)
    remember(running.url, running.key)
    yield running
    listening.should_exit = True
    thread.join(20)
    store.close()


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
