"""Uploads and downloads: they go on where they broke off, and nothing gets its name that is not what was announced."""

from __future__ import annotations

import hashlib
import os

import httpx
import pytest
from server_scripts import breaks_off, says

from tutelage.errors import TutelageError
from tutelage_server.cli.fetching import artifacts_of
from tutelage_server.client.client import ConnectionLost
from tutelage_server.client.transfers import describe, download, held, upload

BODY = bytes(range(256)) * 50
HASH = hashlib.sha256(BODY).hexdigest()


def rest(handler):
    """What a request asks for by its Range."""
    start = int((handler.headers.get("range") or "bytes=0-")[6:-1])
    says(BODY[start:], 206 if start else 200)(handler)


def fetch(scripted, to, body=BODY, **options):
    done = []
    with scripted.client(**options) as client:
        download(client, "/v1/files/file-1/content", to, size=len(body), sha256=HASH, progress=done.append)
    return sum(done)


def test_a_download_that_broke_off_goes_on_where_it_was(scripted, tmp_path):
    scripted.answers[:] = [breaks_off(BODY[:5000], promised=len(BODY)), rest]
    assert fetch(scripted, tmp_path / "sub" / "f.bin") == len(BODY)
    assert (tmp_path / "sub" / "f.bin").read_bytes() == BODY
    assert [headers.get("range") for _, _, headers, _ in scripted.seen] == [None, "bytes=5000-"]
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["f.bin"]


def test_a_later_process_goes_on_with_what_an_earlier_one_left(scripted, tmp_path):
    (tmp_path / ".f.bin.part").write_bytes(BODY[:9000])
    scripted.answers[:] = [says(BODY[9000:], 206)]
    assert fetch(scripted, tmp_path / "f.bin") == len(BODY)
    assert (tmp_path / "f.bin").read_bytes() == BODY
    assert scripted.seen[0][2]["range"] == "bytes=9000-"


def test_a_server_that_sends_all_again_is_taken_at_its_word(scripted, tmp_path):
    (tmp_path / ".f.bin.part").write_bytes(BODY[:9000])
    scripted.answers[:] = [says(BODY)]
    assert fetch(scripted, tmp_path / "f.bin") == len(BODY)
    assert (tmp_path / "f.bin").read_bytes() == BODY


@pytest.mark.parametrize("left", [b"other" * 100, BODY + b"more", b"x" * len(BODY)])
def test_what_an_earlier_try_left_of_another_file_is_brought_anew(scripted, tmp_path, left):
    (tmp_path / ".f.bin.part").write_bytes(left)
    scripted.answers[:] = [rest]
    assert fetch(scripted, tmp_path / "f.bin") == len(BODY)
    assert (tmp_path / "f.bin").read_bytes() == BODY


def test_another_content_than_announced_gets_no_name(scripted, tmp_path):
    scripted.answers[:] = [says(BODY[:-1] + b"!")]
    with pytest.raises(TutelageError, match="checksum"):
        fetch(scripted, tmp_path / "f.bin")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_arrives(scripted, tmp_path):
    scripted.answers[:] = [says(b"")]
    with scripted.client() as client:
        download(client, "/f", tmp_path / "f", size=0, sha256=hashlib.sha256(b"").hexdigest())
    assert (tmp_path / "f").read_bytes() == b""


def test_describe_is_size_and_hash(tmp_path):
    (tmp_path / "f").write_bytes(BODY)
    described = describe(tmp_path / "f")
    assert (described.bytes, described.sha256) == (len(BODY), HASH)
    with pytest.raises(TutelageError):
        describe(tmp_path / "none")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:x", "", "a\0b"])
def test_paths_that_lead_out_are_refused_before_anything_is_fetched(scripted, path):
    scripted.answers[:] = [says({"items": [{"path": path, "bytes": 1, "sha256": ""}], "next": None})]
    with scripted.client() as client, pytest.raises(TutelageError, match="leads out"):
        artifacts_of(client, "job-1")


class Losing(httpx.HTTPTransport):
    """Loses the answer to one PATCH, and the whole of another."""

    def __init__(self, answers=(), requests=()):
        super().__init__()
        self.answers, self.requests, self.patches = answers, requests, 0

    def handle_request(self, request):
        if request.method != "PATCH":
            return super().handle_request(request)
        self.patches += 1
        if self.patches in self.requests:
            raise httpx.ConnectError("lost", request=request)
        answer = super().handle_request(request)
        if self.patches in self.answers:
            answer.close()
            raise httpx.ReadError("lost", request=request)
        return answer


def test_an_upload_goes_on_where_it_was_and_nothing_is_sent_twice(server, tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage_server.client.transfers.PIECE", 3000)
    (tmp_path / "f.bin").write_bytes(BODY)
    losing, done = Losing(answers=(2,), requests=(4,)), []
    with server.client(transport=losing) as client:
        stored = upload(client, describe(tmp_path / "f.bin"), progress=done.append)
        assert (stored["status"], stored["sha256"], sum(done)) == ("processed", HASH, len(BODY))
        assert losing.patches == 6  # five pieces, of which one was lost on its way
        download(client, f"/v1/files/{stored['id']}/content", tmp_path / "back", size=len(BODY), sha256=HASH)
    assert (tmp_path / "back").read_bytes() == BODY


def test_an_upload_that_was_given_up_is_taken_up_by_a_later_process(server, tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage_server.client.transfers.PIECE", 3000)
    (tmp_path / "f.bin").write_bytes(BODY)
    file = describe(tmp_path / "f.bin")
    lost = server.client(transport=Losing(requests=range(3, 999)), patience=0.1)
    with lost as client, pytest.raises(ConnectionLost):
        upload(client, file)
    again = Losing()
    with server.client(transport=again) as client:
        assert held(client, file) is None
        assert upload(client, file)["status"] == "processed"
        assert again.patches == 3
        assert held(client, file) is not None


def test_the_same_bytes_under_a_name_that_is_read_otherwise_are_another_file(server, tmp_path):
    for name in ("rows.jsonl", "rows.txt", "more.jsonl"):
        (tmp_path / name).write_bytes(b'{"text": "x"}')
    with server.client() as client:
        first = upload(client, describe(tmp_path / "rows.jsonl"))
        assert held(client, describe(tmp_path / "rows.txt")) is None
        assert held(client, describe(tmp_path / "more.jsonl"))["id"] == first["id"]


def test_a_file_whose_name_is_no_text_is_told_by_it(tmp_path):
    file = tmp_path / os.fsdecode(b"bad\xff.txt")
    file.write_bytes(b"x")
    with pytest.raises(TutelageError, match="rename it"):
        describe(file)
