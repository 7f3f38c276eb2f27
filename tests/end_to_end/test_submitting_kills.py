"""A real `tutelage serve` is killed while it takes jobs in: whoever sends a request again gets the job of the first."""

from __future__ import annotations

import itertools
import random
import threading
import time
from pathlib import Path

import httpx
import pytest
from job_service import TEXT, recipe
from serving import Served, start
from sqlalchemy import select

from tutelage_server.jobs.launching import job_folder
from tutelage_server.settings import load_settings
from tutelage_server.store.store import Store
from tutelage_server.store.tables import Event, Idempotency, Job, Usage

LIVES, CLIENTS = 6, 4
LIMITS = {"requests_per_minute": 10**6, "active_jobs": 10**6}


class Clients:
    """They submit the same recipe again and again, each time with a key of its own, which they keep until an answer."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self._unanswered: list[str] = []
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    @property
    def keys(self) -> list[str]:
        return [*self.answers, *self._unanswered]

    def submit(self, http: httpx.Client, body: dict, key: str = "") -> str:
        with self._lock:
            key = key or (self._unanswered.pop(0) if self._unanswered else f"key-{next(self._numbers)}")
        try:
            answer = http.post("/v1/jobs", json=body, headers={"idempotency-key": key})
        except httpx.TransportError:
            with self._lock:
                self._unanswered.append(key)
            raise
        assert answer.status_code == 201, answer.text
        job = answer.json()["id"]
        assert self.answers.setdefault(key, job) == job
        return job

    def submit_until_it_dies(self, server: Served, body: dict) -> None:
        with server.client() as http:
            while True:
                try:
                    self.submit(http, body)
                except httpx.TransportError:
                    return


def uploaded(server: Served) -> str:
    with server.client() as http:
        made = http.post("/v1/files", json={"name": "story.txt", "bytes": len(TEXT)}).json()
        headers = {"upload-offset": "0", "content-type": "application/offset+octet-stream"}
        http.patch(f"/v1/files/{made['id']}/content", content=TEXT.encode(), headers=headers).raise_for_status()
    return f"file:{made['id']}"


def begin(tmp_path: Path) -> Served:
    return start(tmp_path, ("--no-dispatcher",), limits=LIMITS)


def patient(server: Served) -> httpx.Client:
    """A client that waits for the process that checks recipes, which starts slowly."""
    http = server.client()
    http.timeout = httpx.Timeout(120)
    return http


@pytest.mark.slow
def test_each_request_makes_one_job_though_the_server_is_killed(tmp_path):
    chance, clients = random.Random(6), Clients()
    server = begin(tmp_path)
    try:
        body = {"recipe": recipe(uploaded(server))}
        for _ in range(LIVES):
            with patient(server) as http:
                clients.submit(http, body)  # the next ones are quick: the answer of the check is remembered
            work = [threading.Thread(target=clients.submit_until_it_dies, args=(server, body)) for _ in range(CLIENTS)]
            for thread in work:
                thread.start()
            time.sleep(chance.uniform(0.1, 1.0))
            server.kill()
            for thread in work:
                thread.join()
            server = begin(tmp_path)
        with patient(server) as http:
            for key in clients.keys:
                clients.submit(http, body, key)
    finally:
        server.kill()
    check(tmp_path, clients)


def check(tmp_path: Path, clients: Clients) -> None:
    settings = load_settings(home=tmp_path / "home")
    store = Store(settings.database_url)
    with store.reading() as session:
        jobs = list(session.scalars(select(Job)))
        assert sorted(job.id for job in jobs) == sorted(clients.answers.values())
        assert len(clients.answers) > LIVES * 2
        for job in jobs:
            folder = job_folder(settings, job.id)
            assert sorted(path.name for path in folder.iterdir()) == ["data", "recipe.yaml"]
            assert (folder / "data/story.txt").read_text() == TEXT
            events = list(session.scalars(select(Event).where(Event.job_id == job.id)))
            assert [(event.number, event.kind) for event in events] == [(1, "state")]
        assert {row.key for row in session.scalars(select(Idempotency))} == set(clients.answers)
        assert [row.jobs for row in session.scalars(select(Usage))] == [len(jobs)]
    store.close()
