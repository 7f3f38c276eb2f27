"""The audit log says who changed what."""

from __future__ import annotations

from serving import client, make_key, make_settings, make_store


def test_changes_are_noted_with_who_and_how_it_ended(tmp_path):
    with client(make_settings(tmp_path)) as http:
        me = http.get("/v1/me").json()["key_id"]
        made = http.post("/v1/keys", json={"name": "x", "scopes": ["read"]}).json()
        http.post("/v1/keys", json={"name": "x"})
        http.post("/v1/keys", content=b"[" * 1000)
        http.post(
            "/v1/keys", json={"name": "y", "scopes": ["read"]}, headers={"authorization": f"Bearer {made['key']}"}
        )
        http.delete(f"/v1/keys/{made['id']}")
        http.delete("/v1/keys/key-of-no-one")
        answer = http.get("/v1/audit-log")
    entries = [(each["key_id"], each["action"], each["target"], each["status"]) for each in answer.json()["items"]]
    assert entries[::-1] == [
        (me, "POST /v1/keys", "", 201),
        (me, "POST /v1/keys", "", 422),
        (me, "POST /v1/keys", "", 400),
        (made["id"], "POST /v1/keys", "", 403),
        (me, "DELETE /v1/keys/{key_id}", made["id"], 200),
        (me, "DELETE /v1/keys/{key_id}", "key-of-no-one", 404),
    ]
    assert {each["address"] for each in answer.json()["items"]} == {"testclient"}


def test_it_is_read_in_pages_and_by_admins_alone(tmp_path):
    store = make_store(tmp_path)
    with client(make_settings(tmp_path), store) as http:
        for _ in range(5):
            http.delete("/v1/keys/none")
        first = http.get("/v1/audit-log", params={"limit": 3}).json()
        second = http.get("/v1/audit-log", params={"limit": 3, "cursor": first["next"]}).json()
        assert [each["id"] for each in first["items"] + second["items"]] == [5, 4, 3, 2, 1]
        assert second["next"] is None
        assert http.get("/v1/audit-log", params={"since": "2999-01-01T00:00:00Z"}).json()["items"] == []
        for wrong in ("0.5", "2026-01-01T00:00:00", "yesterday"):
            assert http.get("/v1/audit-log", params={"since": wrong}).status_code == 400
        assert len(http.get("/v1/audit-log", params={"since": "2001-01-01T00:00:00+01:00"}).json()["items"]) == 5
        reader = {"authorization": f"Bearer {make_key(store, scopes=['read', 'submit', 'advise', 'rank'])}"}
        assert http.get("/v1/audit-log", headers=reader).status_code == 403
        other = {"authorization": f"Bearer {make_key(store, 'two')}"}
        assert http.get("/v1/audit-log", headers=other).json()["items"] == []


def test_questions_and_strangers_are_not_noted(tmp_path):
    with client(make_settings(tmp_path)) as http:
        http.get("/v1/me")
        http.post("/v1/keys", json={}, headers={"authorization": "Bearer tut_no_key"})
        assert http.get("/v1/audit-log").json()["items"] == []
