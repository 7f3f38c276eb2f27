"""The same questions on PostgreSQL, where rows are locked and JSON is JSONB."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clusters import until
from job_service import TEXT, JobService, recipe
from serving import make_store
from sqlalchemy import delete, select, text

from tutelage_server.accounts.usage import add_usage
from tutelage_server.jobs.ending import account
from tutelage_server.store.store import Store, StoreUnavailable, lock_job
from tutelage_server.store.tables import Job, Tenant, Usage


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


def waits_for_a_lock(store) -> bool:
    with store.reading() as session:
        return bool(session.scalar(text("select count(*) from pg_locks where not granted")))


def test_two_that_add_a_months_first_usage_add_it_once(service):
    """Requests are counted beside jobs, on the first of a month or with a new key."""
    job = service.row(service.job())
    with service.store.writing() as session:
        session.execute(delete(Usage))
    with ThreadPoolExecutor(1) as pool, service.store.writing() as session:

        def count():
            with service.store.writing() as other:
                add_usage(other, job.tenant_id, job.key_id, requests=3)

        add_usage(session, job.tenant_id, job.key_id, jobs=1)
        counted = pool.submit(count)
        until(lambda: waits_for_a_lock(service.store))
        session.commit()
        counted.result(20)
    with service.store.reading() as session:
        assert [(row.jobs, row.requests) for row in session.scalars(select(Usage))] == [(1, 3)]


def test_who_submits_and_who_ends_an_attempt_do_not_wait_for_each_other(service):
    job = service.row(service.job())

    def end():
        with service.store.writing() as other:
            account(other, lock_job(other, job.id), service.folder(job.id), 1.0)

    with ThreadPoolExecutor(1) as pool, service.store.writing() as session:
        session.get(Tenant, job.tenant_id, with_for_update=True)
        ended = pool.submit(end)
        until(lambda: waits_for_a_lock(service.store))
        add_usage(session, job.tenant_id, job.key_id, jobs=1)
        session.commit()
        ended.result(20)
    with service.store.reading() as session:
        assert [row.jobs for row in session.scalars(select(Usage))] == [2]


def test_a_server_that_stands_still_while_it_decides_holds_no_other_up(postgres):
    """A suspended machine, say: it never ends its transaction, and finds that out when it goes on."""
    still, other = Store(postgres, patience=0.5), Store(postgres)
    decided = threading.Event()

    def decide():
        with other.deciding("schedule"):
            decided.set()

    thread = threading.Thread(target=decide)
    deciding = still.deciding("schedule")
    session = deciding.__enter__()
    thread.start()
    assert decided.wait(20)
    session.add(Tenant(id="late", name="late"))
    with pytest.raises(StoreUnavailable):
        deciding.__exit__(None, None, None)
    thread.join()
    for store in (still, other):
        store.close()
