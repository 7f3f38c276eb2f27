"""Rates of keys and quotas of tenants."""

from __future__ import annotations

import pytest
from serving import client, make_key, make_settings, make_store
from sqlalchemy import select, update

from tutelage_server.accounts import limits as limits_module
from tutelage_server.accounts.caller import Caller
from tutelage_server.accounts.limits import Rates, check_file_quota, check_job_quota, limits_of, spent_usd
from tutelage_server.accounts.usage import Meter, add_usage
from tutelage_server.problems import Refused
from tutelage_server.settings import Limits
from tutelage_server.store.store import StoreUnavailable
from tutelage_server.store.tables import Job, Key, StoredFile, Tenant, Usage, new_id


def caller(key_id="key-1", rate=None):
    return Caller(key_id, "tenant-1", frozenset(), rate)


def test_a_bucket_holds_a_minutes_requests_and_fills_with_time(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(limits_module.time, "monotonic", lambda: time[0])
    rates = Rates(Limits(requests_per_minute=60))
    for _ in range(60):
        rates.take(caller())
    with pytest.raises(Refused) as refusal:
        rates.take(caller())
    assert refusal.value.status == 429
    assert refusal.value.headers["retry-after"] == "1"
    rates.take(caller("key-2"))
    time[0] += 2.0
    rates.take(caller())
    rates.take(caller())
    with pytest.raises(Refused):
        rates.take(caller())
    time[0] += 3600.0
    for _ in range(60):
        rates.take(caller())
    with pytest.raises(Refused):
        rates.take(caller())


def test_a_keys_own_rate_comes_before_the_servers():
    rates = Rates(Limits(requests_per_minute=600))
    for _ in range(2):
        rates.take(caller(rate=2))
    with pytest.raises(Refused, match="2 requests a minute"):
        rates.take(caller(rate=2))


def test_no_header_moves_a_key_to_another_bucket(tmp_path):
    with client(make_settings(tmp_path, limits={"requests_per_minute": 5})) as http:
        statuses = [
            http.get(
                "/v1/me",
                headers={
                    "x-forwarded-for": f"10.0.0.{n}",
                    "x-real-ip": f"10.0.0.{n}",
                    "forwarded": f"for=10.0.0.{n}",
                    "user-agent": str(n),
                },
            ).status_code
            for n in range(12)
        ]
        assert statuses == [200] * 5 + [429] * 7
        refusal = http.get("/v1/me")
        assert int(refusal.headers["retry-after"]) >= 1
        assert refusal.json()["code"] == "rate_limit_exceeded"
        assert http.get("/v1/healthz").status_code == 200


@pytest.fixture
def tenant(tmp_path):
    """A store with one tenant, the tenant's id and its key's."""
    store = make_store(tmp_path)
    make_key(store)
    with store.reading() as session:
        key = session.scalars(select(Key)).one()
    return store, key.tenant_id, key.id


def add_job(store, tenant_id, key_id, state="queued", usd=0.0):
    with store.writing() as session:
        session.add(
            Job(
                id=new_id("job"),
                tenant_id=tenant_id,
                key_id=key_id,
                name="x",
                state=state,
                recipe={},
                launcher="local",
                usd=usd,
            )
        )


def test_a_tenants_own_limits_come_before_the_servers(tenant):
    store, tenant_id, _ = tenant
    with store.writing() as session:
        session.execute(update(Tenant).values(limits={"active_jobs": 3}))
    with store.reading() as session:
        assert limits_of(session, Limits(file_bytes=7), tenant_id) == Limits(file_bytes=7, active_jobs=3)


@pytest.mark.parametrize(
    ("limits", "usd", "count", "status"),
    [
        (Limits(), 1000.0, 5, None),
        (Limits(active_jobs=3), None, 2, None),
        (Limits(active_jobs=3), None, 3, 403),
        (Limits(job_usd=2.0), 2.0, 1, None),
        (Limits(job_usd=2.0), 2.01, 1, 402),
        (Limits(month_usd=10.0), 1.0, 2, None),  # 3 spent, 5 promised
        (Limits(month_usd=10.0), 1.0, 3, 402),
        (Limits(month_usd=0.0), None, 1, None),
    ],
)
def test_job_quotas(tenant, limits, usd, count, status):
    store, tenant_id, key_id = tenant
    add_job(store, tenant_id, key_id, usd=5.0)
    add_job(store, tenant_id, key_id, state="succeeded", usd=100.0)  # what it cost is in the usage
    with store.writing() as session:
        add_usage(session, tenant_id, key_id, usd=1.0)
        add_usage(session, tenant_id, key_id, usd=2.0, jobs=1)
    with store.reading() as session:
        assert spent_usd(session, tenant_id) == 8.0
        if status is None:
            check_job_quota(session, limits, tenant_id, usd, count)
            return
        with pytest.raises(Refused) as refusal:
            check_job_quota(session, limits, tenant_id, usd, count)
    assert refusal.value.status == status
    assert refusal.value.problems[0].fix


@pytest.mark.parametrize(
    ("limits", "size", "status"),
    [
        (Limits(file_bytes=10), 10, None),
        (Limits(file_bytes=10), 11, 413),
        (Limits(stored_bytes=100), 40, None),
        (Limits(stored_bytes=100), 41, 403),
    ],
)
def test_file_quotas(tenant, limits, size, status):
    store, tenant_id, _ = tenant
    with store.writing() as session:
        session.add(StoredFile(id=new_id("file"), tenant_id=tenant_id, name="a", bytes=60, received=1))
    with store.reading() as session:
        if status is None:
            check_file_quota(session, limits, tenant_id, size)
            return
        with pytest.raises(Refused) as refusal:
            check_file_quota(session, limits, tenant_id, size)
    assert refusal.value.status == status


def test_requests_are_counted_and_kept_when_the_server_ends(tmp_path):
    store = make_store(tmp_path)
    with client(make_settings(tmp_path), store) as http:
        for _ in range(7):
            http.get("/v1/me")
        http.get("/v1/healthz")
    with store.reading() as session:
        assert session.scalars(select(Usage.requests)).all() == [7]
        assert session.scalars(select(Key.last_used_at)).one() is not None
    with client(make_settings(tmp_path), store, key=make_key(store)) as http:
        assert http.get("/v1/usage").json()["keys"][0]["requests"] == 7
        assert http.get("/v1/usage", params={"month": "2001-01"}).json()["keys"] == []
        assert http.get("/v1/usage", params={"month": "2001-13"}).status_code == 400


def test_counts_outlast_a_store_that_is_away(tenant, monkeypatch):
    store, tenant_id, key_id = tenant
    meter = Meter(store)
    who = Caller(key_id, tenant_id, frozenset())
    meter.count(who)
    deciding = store.deciding

    def away(_):
        raise StoreUnavailable.at("the database", "is away")

    monkeypatch.setattr(store, "deciding", away)
    meter.keep()
    meter.count(who)
    monkeypatch.setattr(store, "deciding", deciding)
    meter.keep()
    meter.keep()
    with store.reading() as session:
        assert session.scalars(select(Usage.requests)).all() == [2]
