"""The same files on a real S3 server (moto's), as on a folder."""

from __future__ import annotations

import hashlib

import pytest
from serving import client, make_settings, make_store

from tutelage.errors import TutelageError
from tutelage_server.files.deleting import tidy
from tutelage_server.files.storage import Storage, place_file
from tutelage_server.problems import Refused
from tutelage_server.store.tables import StoredFile

boto3 = pytest.importorskip("boto3", reason="moto[server] and s3fs are not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")

DATA = bytes(range(256)) * 70_000


@pytest.fixture(scope="module")
def s3():
    """Address and client of a server with the bucket `files`."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", address)
        patched.setenv("AWS_ACCESS_KEY_ID", "x")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="files")
        yield address, bucket
    server.stop()


def keys(bucket):
    return [each["Key"] for each in bucket.list_objects_v2(Bucket="files", Prefix="tutelage/").get("Contents", [])]


def test_files_live_in_a_bucket(tmp_path, s3):
    _, bucket = s3
    settings = make_settings(tmp_path, files="s3://files/tutelage")
    store = make_store(tmp_path)
    with client(settings, store) as http:
        body = {"name": "rows.jsonl", "bytes": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
        file_id = http.post("/v1/files", json=body).json()["id"]
        assert http.patch(f"/v1/files/{file_id}/content", content=DATA[:99], headers={"upload-offset": "0"}).is_success
        assert keys(bucket) == []
        assert http.patch(f"/v1/files/{file_id}/content", content=DATA[99:], headers={"upload-offset": "99"}).is_success
        assert len(keys(bucket)) == 1
        assert http.get(f"/v1/files/{file_id}/content").content == DATA
        part = http.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=17000000-17000009"})
        assert (part.status_code, part.content) == (206, DATA[17_000_000:17_000_010])
        assert http.post("/v1/files", json={**body, "name": "again"}).json()["status"] == "processed"
        with store.reading() as session:
            row = session.get(StoredFile, file_id)
        place_file(settings, row, tmp_path / "placed")
        assert (tmp_path / "placed").read_bytes() == DATA
        for each in http.get("/v1/files").json()["items"]:
            assert http.delete(f"/v1/files/{each['id']}").status_code == 204
        assert keys(bucket) == []
        assert tidy(settings, store) == 0


def test_a_bucket_that_is_not_there_loses_no_upload(tmp_path, s3):
    settings = make_settings(tmp_path, files="s3://missing/tutelage")
    with client(settings, make_store(tmp_path)) as http:
        file_id = http.post("/v1/files", json={"name": "rows.jsonl", "bytes": 5}).json()["id"]
        answer = http.patch(f"/v1/files/{file_id}/content", content=b"12345", headers={"upload-offset": "0"})
        assert answer.status_code == 503
        assert answer.json()["code"] == "storage_unavailable"
        assert answer.headers["retry-after"]
        assert "x" not in answer.json()["detail"].split()
        assert http.get(f"/v1/files/{file_id}").json()["received"] == 5
        s3[1].create_bucket(Bucket="missing")
        assert http.head(f"/v1/files/{file_id}/content").headers["upload-offset"] == "5"
        assert http.get(f"/v1/files/{file_id}").json()["status"] == "processed"


def test_what_the_bucket_lost_is_said(s3):
    with pytest.raises(Refused) as refusal:
        list(Storage("s3://files/tutelage").blocks("nothing/here"))
    assert refusal.value.status == 503
    assert "lacks" in str(refusal.value)
    Storage("s3://files/tutelage").remove("nothing/here")


def test_an_address_that_nothing_reaches_is_a_sentence():
    with pytest.raises(TutelageError, match="can't be used"):
        Storage("nosuch://bucket")
