"""The same questions on PostgreSQL, where rows are locked and JSON is JSONB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from job_service import TEXT, JobService, recipe
from serving import make_store

from tutelage_server.store.tables import Job


@pytest.fixture
def service(tmp_path: Path, postgres: str, monkeypatch):
    monkeypatch.setattr("job_service.make_store", lambda folder: make_store(folder, postgres))
    with JobService(tmp_path, limits={"active_jobs": 3}) as made:
        yield made


def test_submitting_at_once_keeps_keys_and_quotas(service):
    fields = {"recipe": recipe(service.upload(TEXT)), "headers": {"idempotency-key": "k"}}
    with ThreadPoolExecutor(4) as pool:
        same = list(pool.map(lambda _: service.submit(**fields).json()["id"], range(4)))
        others = list(pool.map(lambda _: service.submit(recipe=fields["recipe"]).status_code, range(6)))
    assert len(set(same)) == 1
    assert sorted(others) == [201, 201, 403, 403, 403, 403]


def test_labels_pages_and_events(service):
    one, two = service.job(labels={"team": "a"}), service.job(labels={"team": "b", "x.y/z": "1"})
    found = service.http.get("/v1/jobs", params={"label": ["team=b", "x.y/z"]}).json()["items"]
    assert [job["id"] for job in found] == [two]
    page = service.http.get("/v1/jobs", params={"limit": 1}).json()
    assert service.http.get("/v1/jobs", params={"cursor": page["next"]}).json()["items"][0]["id"] == one
    service.become(one, "starting", "succeeded")
    text = service.http.get(f"/v1/jobs/{one}/events", headers={"accept": "text/event-stream"}).text
    assert text.count("\nevent: state\n") == 3
    with service.store.reading() as session:
        assert session.get_one(Job, one).sweep_index is None
