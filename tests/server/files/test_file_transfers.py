"""Files up and down: resumable, verified, whole or absent, shared by content, within quotas."""

from __future__ import annotations

import hashlib
import os
import threading
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from serving import client, make_key, make_settings, make_store
from sqlalchemy import update

from tutelage_server.files.deleting import ABANDONED, tidy
from tutelage_server.files.storage import open_file, open_lines, place_file
from tutelage_server.files.uploads import upload_path
from tutelage_server.problems import Refused
from tutelage_server.store.tables import StoredFile, now

DATA = bytes(range(256)) * 5000


@pytest.fixture
def server(tmp_path):
    settings = make_settings(tmp_path, limits={"file_bytes": 2_000_000, "stored_bytes": 4_000_000})
    store = make_store(tmp_path)
    with client(settings, store) as http:
        yield http, store, settings


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def announce(http, data=DATA, name="rows.jsonl", hashed=True, **more):
    body = {"name": name, "bytes": len(data), **({"sha256": sha256(data)} if hashed else {}), **more}
    return http.post("/v1/files", json=body)


def send(http, file_id, offset, piece, **headers):
    return http.patch(f"/v1/files/{file_id}/content", content=piece, headers={"upload-offset": str(offset), **headers})


def sent(http, data=DATA, **fields):
    file_id = announce(http, data, **fields).json()["id"]
    assert send(http, file_id, 0, data).status_code == 204
    return http.get(f"/v1/files/{file_id}").json()


def objects(settings):
    return sorted(path for path in (settings.folder / "files").rglob("*") if path.is_file())


@pytest.mark.parametrize("hashed", [True, False])
def test_a_file_goes_up_in_pieces_and_comes_down_whole(server, hashed):
    http, store, settings = server
    made = announce(http, hashed=hashed)
    assert made.status_code == 201
    file = made.json()
    assert (file["status"], file["received"], file["name"]) == ("uploading", 0, "rows.jsonl")
    at = 0
    for size in (1, 65_536, 300_000, len(DATA)):
        piece = DATA[at : at + size]
        answer = send(http, file["id"], at, piece)
        at += len(piece)
        assert answer.status_code == 204
        assert answer.headers["upload-offset"] == str(at)
        assert http.head(f"/v1/files/{file['id']}/content").headers["upload-offset"] == str(at)
    shown = http.get(f"/v1/files/{file['id']}").json()
    assert (shown["status"], shown["received"], shown["sha256"]) == ("processed", len(DATA), sha256(DATA))
    down = http.get(f"/v1/files/{file['id']}/content")
    assert down.content == DATA
    assert down.headers["content-length"] == str(len(DATA))
    assert down.headers["etag"] == f'"{sha256(DATA)}"'
    assert down.headers["content-type"] == "application/octet-stream"
    assert down.headers["content-disposition"].startswith("attachment;")
    assert (
        http.get(f"/v1/files/{file['id']}/content", headers={"if-none-match": down.headers["etag"]}).status_code == 304
    )
    with store.reading() as session:
        row = session.get(StoredFile, file["id"])
    assert b"".join(open_file(settings, row)) == DATA
    assert not list((settings.folder / "uploads").iterdir())


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 1100), last=st.integers(0, 1100), form=st.sampled_from(["both", "open", "suffix"]))
def test_a_range_is_what_python_slices(whole, first, last, form):
    http, file_id, data = whole
    asked = {"both": f"bytes={first}-{last}", "open": f"bytes={first}-", "suffix": f"bytes=-{last}"}[form]
    answer = http.get(f"/v1/files/{file_id}/content", headers={"range": asked})
    if form == "both" and last < first:
        wanted, whole_one = data, True
    else:
        wanted = {"both": data[first : last + 1], "open": data[first:], "suffix": data[-last:] if last else b""}[form]
        whole_one = wanted == data
    if not wanted:
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{len(data)}"
        return
    assert answer.content == wanted
    assert answer.status_code == (200 if whole_one else 206)
    if not whole_one:
        start = len(data) - len(wanted) if form == "suffix" else first
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(wanted) - 1}/{len(data)}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("ranges")
    data = os.urandom(1000)
    settings = make_settings(tmp_path, limits={"requests_per_minute": 100_000})
    with client(settings, make_store(tmp_path)) as http:
        yield http, sent(http, data)["id"], data


def test_a_range_of_a_file_that_changed_is_the_whole(whole):
    http, file_id, data = whole
    for tag, status in ((f'"{sha256(data)}"', 206), ('"another"', 200)):
        answer = http.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=1-2", "if-range": tag})
        assert answer.status_code == status
    for strange in ("bytes=1-2,5-6", "rows=1-2", "bytes=x-y", "bytes=-", "bytes=" + "9" * 400 + "-"):
        assert http.get(f"/v1/files/{file_id}/content", headers={"range": strange}).content == data


def test_an_upload_goes_on_only_where_it_is(server):
    http, *_ = server
    file_id = announce(http).json()["id"]
    assert send(http, file_id, 0, DATA[:1000]).status_code == 204
    for wrong in (0, 999, 1001):
        answer = send(http, file_id, wrong, DATA[wrong : wrong + 10])
        assert answer.status_code == 409
        assert answer.headers["upload-offset"] == "1000"
        assert answer.json()["code"] == "wrong_offset"
    answer = http.patch(f"/v1/files/{file_id}/content", content=b"x")
    assert answer.status_code == 400
    assert "Upload-Offset" in answer.text
    assert send(http, file_id, 1000, DATA[1000:]).status_code == 204
    assert send(http, file_id, len(DATA), b"").status_code == 409
    assert http.get(f"/v1/files/{file_id}/content").content == DATA


def test_bytes_that_are_not_those_announced_are_never_a_file(server):
    http, _, settings = server
    file_id = announce(http).json()["id"]
    answer = send(http, file_id, 0, DATA[:-1] + b"x")
    assert answer.status_code == 422
    assert answer.json()["code"] == "wrong_hash"
    assert http.get(f"/v1/files/{file_id}").json()["status"] == "uploading"
    assert http.get(f"/v1/files/{file_id}/content").status_code == 409
    assert http.head(f"/v1/files/{file_id}/content").headers["upload-offset"] == "0"
    assert objects(settings) == []
    assert send(http, file_id, 0, DATA).status_code == 204
    assert http.get(f"/v1/files/{file_id}/content").content == DATA


def test_more_bytes_than_announced_are_refused_and_leave_the_upload_as_it_was(server):
    http, *_ = server
    file_id = announce(http).json()["id"]
    assert send(http, file_id, 0, DATA[:1000]).status_code == 204
    assert send(http, file_id, 1000, DATA).status_code == 413
    assert http.head(f"/v1/files/{file_id}/content").headers["upload-offset"] == "1000"
    assert send(http, file_id, 1000, DATA[1000:]).status_code == 204


def test_an_empty_file_needs_no_bytes(server):
    http, *_ = server
    file = announce(http, b"", name="empty.txt", hashed=False).json()
    assert (file["status"], file["sha256"]) == ("processed", sha256(b""))
    assert http.get(f"/v1/files/{file['id']}/content").content == b""
    assert announce(http, b"", sha256="0" * 64).status_code == 422


def test_what_the_tenant_has_is_not_sent_again(server):
    http, store, settings = server
    first = sent(http)
    again = announce(http)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    other = announce(http, name="rows.csv")
    assert (other.status_code, other.json()["status"]) == (201, "processed")
    assert other.json()["id"] != first["id"]
    assert len(objects(settings)) == 1
    http.delete(f"/v1/files/{first['id']}")
    assert http.get(f"/v1/files/{other.json()['id']}/content").content == DATA
    assert http.delete(f"/v1/files/{other.json()['id']}").status_code == 204
    assert objects(settings) == []
    assert announce(http).json()["status"] == "uploading"
    with client(settings, store, make_key(store, "two")) as two:  # that another has them can't be told
        assert announce(two).json()["status"] == "uploading"


def test_an_upload_that_was_begun_goes_on_under_its_id(server):
    http, *_ = server
    begun = announce(http).json()
    send(http, begun["id"], 0, DATA[:5000])
    again = announce(http).json()
    assert (again["id"], again["received"]) == (begun["id"], 5000)


def test_the_same_announcement_with_its_key_makes_one_file(server):
    http, *_ = server
    body = {"name": "a.txt", "bytes": 10}
    ids = {http.post("/v1/files", json=body, headers={"idempotency-key": "k"}).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    assert http.post("/v1/files", json={**body, "bytes": 11}, headers={"idempotency-key": "k"}).status_code == 422


def test_what_a_crash_left_whole_is_finished_when_somebody_asks(server):
    http, _, settings = server
    file_id = announce(http).json()["id"]
    send(http, file_id, 0, DATA[:10])
    upload_path(settings, file_id).write_bytes(DATA)
    assert http.head(f"/v1/files/{file_id}/content").headers["upload-offset"] == str(len(DATA))
    assert http.get(f"/v1/files/{file_id}").json()["status"] == "processed"
    lost = announce(http, DATA[:50]).json()["id"]
    send(http, lost, 0, DATA[:20])
    upload_path(settings, lost).unlink()  # as on a server with another disk
    assert http.head(f"/v1/files/{lost}/content").headers["upload-offset"] == "0"
    assert send(http, lost, 20, DATA[20:50]).headers["upload-offset"] == "0"
    assert send(http, lost, 0, DATA[:50]).status_code == 204


def test_two_that_send_the_same_file_at_once_make_it_once(server):
    http, _, settings = server
    file_id = announce(http).json()["id"]
    statuses = []

    def go():
        while (offset := int(http.head(f"/v1/files/{file_id}/content").headers["upload-offset"])) < len(DATA):
            statuses.append(send(http, file_id, offset, DATA[offset : offset + 100_000]).status_code)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {204, 409}
    assert http.get(f"/v1/files/{file_id}/content").content == DATA
    assert len(objects(settings)) == 1


def test_quotas(server):
    http, *_ = server
    assert announce(http, b"x", bytes=2_000_001).status_code == 413
    for number in range(2):
        assert http.post("/v1/files", json={"name": f"{number}", "bytes": 2_000_000}).status_code == 201
    refusal = http.post("/v1/files", json={"name": "more", "bytes": 1})
    assert refusal.status_code == 403
    assert refusal.json()["code"] == "storage_full"
    http.delete(f"/v1/files/{http.get('/v1/files').json()['items'][0]['id']}")
    assert http.post("/v1/files", json={"name": "more", "bytes": 1}).status_code == 201


def test_expired_files_are_gone_at_once_and_their_bytes_soon(server):
    http, store, settings = server
    assert announce(http, expires_at=str(now() - timedelta(seconds=1))).status_code == 422
    file = sent(http, expires_at=(now() + timedelta(hours=1)).isoformat())
    kept = sent(http, DATA[:9], name="kept.txt")
    with store.writing() as session:
        session.execute(update(StoredFile).where(StoredFile.id == file["id"]).values(expires_at=now()))
    assert http.get(f"/v1/files/{file['id']}").status_code == 404
    assert http.get(f"/v1/files/{file['id']}/content").status_code == 404
    assert [each["id"] for each in http.get("/v1/files").json()["items"]] == [kept["id"]]
    assert len(objects(settings)) == 2
    assert tidy(settings, store) == 1
    assert len(objects(settings)) == 1
    assert tidy(settings, store) == 0


def test_uploads_that_nobody_goes_on_with_are_dropped(server):
    http, store, settings = server
    old, new = announce(http).json()["id"], announce(http, DATA[:100]).json()["id"]
    for file_id in (old, new):
        send(http, file_id, 0, DATA[:10])
    with store.writing() as session:
        session.execute(update(StoredFile).where(StoredFile.id == old).values(created_at=now() - ABANDONED * 2))
    stray = upload_path(settings, "file-0")
    stray.write_bytes(b"x")
    os.utime(stray, (0, 0))
    assert tidy(settings, store) == 1
    assert [path.name for path in stray.parent.iterdir()] == [new]


def test_a_file_that_is_half_deleted_is_not_seen_and_goes_away(server, monkeypatch):
    http, store, settings = server
    file = sent(http)

    def gone(*_):
        raise Refused(503, [])

    with monkeypatch.context() as patched:
        patched.setattr("tutelage_server.files.storage.Storage.remove", gone)
        assert http.delete(f"/v1/files/{file['id']}").status_code == 503
    assert http.get(f"/v1/files/{file['id']}").status_code == 404
    assert http.get("/v1/files").json()["items"] == []
    assert announce(http).json()["status"] == "uploading"
    assert tidy(settings, store) == 1
    assert objects(settings) == []


def test_a_stored_file_is_placed_without_a_second_copy(server, tmp_path):
    http, store, settings = server
    file_id = sent(http)["id"]
    with store.reading() as session:
        row = session.get(StoredFile, file_id)
    to = tmp_path / "home" / "data.jsonl"
    place_file(settings, row, to)
    assert to.read_bytes() == DATA
    assert to.stat().st_ino == objects(settings)[0].stat().st_ino
    http.delete(f"/v1/files/{file_id}")
    assert to.read_bytes() == DATA
    with pytest.raises(Refused) as refusal:
        place_file(settings, row, tmp_path / "again")
    assert refusal.value.status == 503
    assert not (tmp_path / "again").exists()


def test_lines_are_cut_where_they_are_too_long(server):
    http, store, settings = server
    data = b"one\n\n" + b"x" * 3_000 + b"\n" + b"y" * 1_500_000 + b"\nlast"
    file_id = sent(http, data)["id"]
    with store.reading() as session:
        row = session.get(StoredFile, file_id)
    assert list(open_lines(settings, row, 5000)) == [b"one", b"", b"x" * 3000, b"y" * 5001, b"last"]


def test_a_full_disk_loses_nothing(server, monkeypatch):
    http, *_ = server
    file_id = announce(http).json()["id"]
    send(http, file_id, 0, DATA[:1000])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tutelage_server.files.uploads._write_all", full)
        answer = send(http, file_id, 1000, DATA[1000:])
    assert answer.status_code == 503
    assert answer.json()["code"] == "disk_full"
    assert send(http, file_id, 1000, DATA[1000:]).status_code == 204
    assert http.get(f"/v1/files/{file_id}/content").content == DATA


BAD_NAMES = [
    "", " ", "a ", "../x", "..", ".", "...", "a/b", "/etc/passwd", "a\\b", "C:\\x", "a\x00b", "a\nb", "a\r\nSet-Cookie: x",
    "a\u202etxt.exe", "a\u200bb", "\ufeffa", "a\u2028b", "a\x7fb", "a\u2215b".replace("\u2215", "\uff0f"), "\uff0e\uff0e", "x" * 256,
    "é" * 128, "a\x85b", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_play_tricks_are_refused(server, name):
    answer = announce(server[0], name=name)
    assert answer.status_code in (400, 422), answer.text


GOOD_NAMES = [
    "a.jsonl",
    "späte Daten (2).csv",
    "日本語.jsonl",
    "-rf",
    "$(touch x);`id`.jsonl",
    "..a",
    "%2e%2e%2f",
    'a"b.txt',
    "nul",
    "x" * 255,
]


@pytest.mark.parametrize("name", GOOD_NAMES, ids=ascii)
def test_other_names_are_data(server, name):
    http, _, settings = server
    file = sent(http, name=name)
    assert file["name"] == name
    assert all(name not in str(path) for path in objects(settings)) or len(name) < 4
    answer = http.get(f"/v1/files/{file['id']}/content")
    assert answer.content == DATA
    assert "\n" not in answer.headers["content-disposition"]
    assert answer.headers["content-disposition"].count('"') == 2


def test_ids_lead_nowhere_else(server):
    http, _, settings = server
    (settings.folder / "secret").write_text("x")
    for strange in ("..%2f..%2fsecret", "%2e%2e", "..%5c", "file-0", "%00", "a" * 65, "file-%0a"):
        for path in (f"/v1/files/{strange}", f"/v1/files/{strange}/content"):
            assert http.get(path).status_code in (400, 404)
    assert not (settings.folder / "uploads").exists() or not list((settings.folder / "uploads").iterdir())


def test_lists_are_filtered_and_in_pages(server):
    http, *_ = server
    made = [
        sent(http, bytes([number]), name=f"{number}.txt", purpose="x" if number % 2 else "y") for number in range(5)
    ]
    first = http.get("/v1/files", params={"limit": 3}).json()
    second = http.get("/v1/files", params={"limit": 3, "cursor": first["next"]}).json()
    assert [each["id"] for each in first["items"] + second["items"]] == [each["id"] for each in reversed(made)]
    assert second["next"] is None
    found = http.get("/v1/files", params={"sha256": made[2]["sha256"]}).json()["items"]
    assert [each["id"] for each in found] == [made[2]["id"]]
    assert len(http.get("/v1/files", params={"purpose": "x"}).json()["items"]) == 2
    tagged = http.get("/v1/files")
    assert http.get("/v1/files", headers={"if-none-match": tagged.headers["etag"]}).status_code == 304
