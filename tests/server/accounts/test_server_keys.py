"""Keys: how they are kept and checked, and what the routes about them do."""

from __future__ import annotations

from datetime import timedelta

import argon2
import pytest
from serving import client, make_key, make_settings, make_store
from sqlalchemy import select, text

from tutelage_server.accounts import keys as keys_module
from tutelage_server.accounts.keys import Keys
from tutelage_server.problems import Refused
from tutelage_server.store.tables import Key, now


def wrong_of(refusal):
    return refusal.value.problems[0].wrong


def test_only_an_argon2_hash_of_the_secret_is_stored(tmp_path):
    store = make_store(tmp_path)
    key = make_key(store)
    secret = key.split("_", 2)[2]
    with store.reading() as session:
        row = session.scalars(select(Key)).one()
        stored = " ".join(str(value) for value in session.execute(text("select * from key")).one())
    assert secret not in stored
    assert row.hash.startswith("$argon2id$")
    assert argon2.PasswordHasher().verify(row.hash, secret)
    files = b"".join(file.read_bytes() for file in (tmp_path / "home").iterdir())
    assert secret.encode() not in files


def test_a_key_is_hashed_once_and_then_remembered(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    key = make_key(store)
    keys = Keys(store)
    hashed = []
    verify = keys_module._matches
    monkeypatch.setattr(keys_module, "_matches", lambda *each: hashed.append(1) or verify(*each))
    assert keys.remembered(key) is None
    caller = keys.check(key)
    assert [keys.remembered(key) for _ in range(3)] == [caller] * 3
    assert keys.check(key) == caller
    assert len(hashed) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1] + ("a" if key[-1] != "a" else "b"),
        lambda key: key + "x",
        lambda key: key.replace("tut_", "tat_"),
        lambda key: "tut_0000000000000000_" + key.split("_", 2)[2],
        lambda key: "tut__",
        lambda key: "tut_" + "x" * 10_000,
    ],
)
def test_any_other_text_is_refused(tmp_path, spoil):
    store = make_store(tmp_path)
    key = make_key(store)
    keys = Keys(store)
    keys.check(key)
    with pytest.raises(Refused) as refusal:
        keys.check(spoil(key))
    assert refusal.value.status == 401


def test_an_expired_key_is_refused_though_it_is_remembered(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    key = make_key(store, expires_at=now() + timedelta(hours=1))
    keys = Keys(store)
    keys.check(key)
    monkeypatch.setattr(keys_module, "now", lambda: now() + timedelta(hours=2))
    for ask in (keys.check, keys.remembered):
        with pytest.raises(Refused) as refusal:
            ask(key)
        assert "expired on" in wrong_of(refusal)


def test_a_key_revoked_by_another_process_stops_when_what_is_known_is_stale(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    key = make_key(store)
    keys = Keys(store)
    caller = keys.check(key)
    with store.writing() as session:
        session.get_one(Key, caller.key_id).revoked_at = now()
    monkeypatch.setattr(keys_module, "FRESH_SECONDS", -1.0)
    assert keys.remembered(key) is None
    with pytest.raises(Refused, match="was revoked"):
        keys.check(key)


def test_a_key_revoked_here_stops_at_once(tmp_path):
    with client(make_settings(tmp_path)) as http:
        made = http.post("/v1/keys", json={"name": "short", "scopes": ["read"]}).json()
        as_made = {"authorization": f"Bearer {made['key']}"}
        assert http.get("/v1/me", headers=as_made).json()["key_id"] == made["id"]
        revoked = http.delete(f"/v1/keys/{made['id']}")
        assert revoked.status_code == 200
        assert revoked.json()["revoked_at"]
        refusal = http.get("/v1/me", headers=as_made)
        assert refusal.status_code == 401
        assert refusal.headers["www-authenticate"] == "Bearer"
        again = http.delete(f"/v1/keys/{made['id']}").json()
        assert again["revoked_at"] == revoked.json()["revoked_at"]


def test_keys_are_listed_in_pages_without_their_secrets(tmp_path):
    with client(make_settings(tmp_path)) as http:
        texts = [http.post("/v1/keys", json={"name": f"{n}", "scopes": ["read"]}).json()["key"] for n in range(4)]
        seen, cursor = [], None
        while True:
            answer = http.get("/v1/keys", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
            assert not any(text.split("_", 2)[2] in answer.text for text in texts)
            assert "argon2" not in answer.text
            seen += [item["name"] for item in answer.json()["items"]]
            cursor = answer.json()["next"]
            if cursor is None:
                break
    assert seen == ["3", "2", "1", "0", "test"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"name": "", "scopes": ["read"]}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "scopes": ["read"], "expires_at": "2001-01-01T00:00:00"}, "expires_at"),
        ({"name": "x", "scopes": ["read"], "expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
        ({"name": "x", "scopes": ["read"], "requests_per_minute": 601}, "requests_per_minute"),
        ({"scopes": ["read"]}, "name"),
    ],
)
def test_a_new_key_that_makes_no_sense_is_refused_with_its_place(tmp_path, body, place):
    with client(make_settings(tmp_path)) as http:
        answer = http.post("/v1/keys", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert place in answer.json()["problems"][0]["place"] + answer.json()["problems"][0]["wrong"]


def test_only_the_operator_makes_keys_of_other_tenants(tmp_path):
    settings = make_settings(tmp_path)
    store = make_store(tmp_path)
    wanted = {"name": "x", "scopes": ["read"], "tenant": "two"}
    with client(settings, store) as http:
        refusal = http.post("/v1/keys", json=wanted)
        assert (refusal.status_code, refusal.json()["code"]) == (403, "not_operator")
        operator = {"authorization": f"Bearer {make_key(store, settings.operator)}"}
        made = http.post("/v1/keys", json=wanted, headers=operator).json()
        me = http.get("/v1/me", headers={"authorization": f"Bearer {made['key']}"}).json()
        assert me["tenant"] == "two"
        assert made["id"] not in http.get("/v1/keys", headers=operator).text


def test_a_key_is_made_once_for_an_idempotency_key_and_its_text_is_not_kept_for_that(tmp_path):
    store = make_store(tmp_path)
    with client(make_settings(tmp_path), store) as http:
        ask = {"json": {"name": "once", "scopes": ["read"]}, "headers": {"idempotency-key": "abc"}}
        made = http.post("/v1/keys", **ask)
        assert made.status_code == 201
        again = http.post("/v1/keys", **ask)
        assert (again.status_code, again.json()["code"]) == (409, "key_already_made")
        assert made.json()["id"] in again.text
        assert len(http.get("/v1/keys").json()["items"]) == 2
    with store.reading() as session:
        kept = str(session.execute(text("select * from idempotency")).one())
    assert made.json()["key"].split("_", 2)[2] not in kept


def test_the_routes_of_accounts_work_on_both_databases(tmp_path, database):
    store = make_store(tmp_path, database)
    with client(make_settings(tmp_path, database=database), store) as http:
        made = http.post(
            "/v1/keys", json={"name": "é", "scopes": ["read", "admin"], "expires_at": "2999-01-01T00:00:00Z"}
        )
        assert made.status_code == 201, made.text
        with_it = {"authorization": f"Bearer {made.json()['key']}"}
        assert http.get("/v1/me", headers=with_it).json()["scopes"] == ["admin", "read"]
        assert [each["name"] for each in http.get("/v1/keys", headers=with_it).json()["items"]] == ["é", "test"]
        assert http.delete(f"/v1/keys/{made.json()['id']}").json()["revoked_at"]
        assert http.get("/v1/me", headers=with_it).status_code == 401
        assert http.get("/v1/usage").json()["spent_usd"] == 0.0
        assert [each["status"] for each in http.get("/v1/audit-log").json()["items"]] == [200, 201]
    store.close()
