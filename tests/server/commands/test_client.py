"""The client: what it sends again, what it makes of refusals, and event streams that break off."""

from __future__ import annotations

import json
import socket
import time

import pytest
from server_scripts import breaks_off, says

from tutelage.errors import TutelageError
from tutelage_server.client.client import Client, ConnectionLost, ServerRefused, _messages, segment
from tutelage_server.client.servers import KnownServer

PROBLEM = {
    "type": "about:blank",
    "title": "Something is to be mended",
    "status": 422,
    "detail": "x",
    "code": "invalid",
    "problems": [{"place": "stages.tune", "wrong": "is odd", "fix": "mend it"}, {"place": "name", "wrong": "missing"}],
}


def test_a_get_is_sent_again_after_a_lost_connection_and_503(scripted):
    scripted.answers[:] = [breaks_off(), says(PROBLEM, 503, retry_after="0"), says({"fine": True})]
    with scripted.client() as client:
        assert client.get("/v1/me") == {"fine": True}
    assert [path for _, path, _, _ in scripted.seen] == ["/v1/me"] * 3


def test_a_post_is_sent_again_with_the_same_key_and_body(scripted):
    scripted.answers[:] = [says({}, 429, retry_after="0"), breaks_off(), breaks_off(b"{"), says({"id": "job-1"}, 201)]
    with scripted.client() as client:
        assert client.post("/v1/jobs", {"recipe": {}})["id"] == "job-1"
    assert len(scripted.seen) == 4
    assert len({headers["idempotency-key"] for _, _, headers, _ in scripted.seen}) == 1
    assert {body for *_, body in scripted.seen} == {b'{"recipe":{}}'}


def test_two_posts_have_different_keys_and_a_given_key_is_sent(scripted):
    scripted.answers[:] = [says({})]
    with scripted.client() as client:
        client.post("/v1/jobs")
        client.post("/v1/jobs")
        client.post("/v1/jobs", None, "mine")
    keys = [headers["idempotency-key"] for _, _, headers, _ in scripted.seen]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_one_in_progress_is_asked_again_and_another_conflict_is_not(scripted):
    scripted.answers[:] = [says(PROBLEM, 409, retry_after="0"), says({"id": "job-1"}), says(PROBLEM, 409)]
    with scripted.client() as client:
        assert client.post("/v1/jobs")["id"] == "job-1"
        with pytest.raises(ServerRefused) as raised:
            client.post("/v1/jobs/job-1/pause")
    assert raised.value.status == 409
    assert len(scripted.seen) == 3


def test_a_refusal_has_the_servers_sentences_and_is_not_sent_again(scripted):
    scripted.answers[:] = [says(PROBLEM, 422, content_type="application/problem+json")]
    with scripted.client() as client, pytest.raises(ServerRefused) as raised:
        client.post("/v1/jobs", {})
    assert [str(problem) for problem in raised.value.problems] == ["stages.tune: is odd; mend it", "name: missing"]
    assert (raised.value.code, raised.value.exit_code) == ("invalid", 2)
    assert len(scripted.seen) == 1


@pytest.mark.parametrize("body", [b"<html>no</html>", b"[1]", b'"x"', b""])
def test_a_page_that_is_no_problem_document_becomes_a_sentence(scripted, body):
    scripted.answers[:] = [says(body, 500)]
    with scripted.client() as client, pytest.raises(ServerRefused) as raised:
        client.get("/v1/me")
    assert "/v1/me: the server answered 500" in str(raised.value)
    assert raised.value.exit_code == 1


def test_a_server_that_is_not_there_is_given_up_soon_with_code_5():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    client = Client(KnownServer(url=f"http://127.0.0.1:{port}"), patience=600)
    with client, pytest.raises(ConnectionLost) as raised:
        client.get("/v1/me")
    assert raised.value.exit_code == 5
    assert time.monotonic() - began < 60


def test_a_server_that_stays_unavailable_counts_as_lost(scripted):
    scripted.answers[:] = [says(PROBLEM, 503)]
    with scripted.client(patience=0.5) as client, pytest.raises(ConnectionLost):
        client.get("/v1/me")
    assert len(scripted.seen) >= 2


def test_a_wait_longer_than_the_patience_is_not_begun(scripted):
    scripted.answers[:] = [says(PROBLEM, 429, retry_after="3600")]
    began = time.monotonic()
    with scripted.client(patience=30) as client, pytest.raises(ConnectionLost):
        client.get("/v1/me")
    assert time.monotonic() - began < 25


def test_a_delete_that_was_done_before_its_answer_was_lost_is_done(scripted):
    scripted.answers[:] = [breaks_off(), says(PROBLEM, 404)]
    with scripted.client() as client:
        client.delete("/v1/files/file-1")
        with pytest.raises(ServerRefused):
            client.delete("/v1/files/file-1")


def test_redirects_are_not_followed_with_the_key(scripted):
    scripted.answers[:] = [says(b"", 307, location="http://127.0.0.1:1/")]
    with scripted.client() as client, pytest.raises(ServerRefused):
        client.get("/v1/me")
    assert len(scripted.seen) == 1


def test_pages_are_read_to_the_end_or_to_a_limit(scripted):
    pages = [{"items": [{"n": 1}, {"n": 2}], "next": "b"}, {"items": [{"n": 3}], "next": None}]
    scripted.answers[:] = [*map(says, pages), *map(says, pages)]
    with scripted.client() as client:
        assert [item["n"] for item in client.pages("/v1/jobs", state=["running"])] == [1, 2, 3]
        assert [item["n"] for item in client.pages("/v1/jobs", 2)] == [1, 2]
    paths = [path for _, path, _, _ in scripted.seen]
    assert paths == [
        "/v1/jobs?limit=200&state=running",
        "/v1/jobs?cursor=b&limit=200&state=running",
        "/v1/jobs?limit=2",
    ]


def test_messages_of_a_stream_are_read_as_the_standard_has_them():
    lines = [": comment", "id: 7", "event: step", "data: {", "data: }", "", "id:8", "", "data: last", "", "data: lost"]
    found = list(_messages(iter(lines)))
    assert [(message.id, message.event, message.data) for message in found] == [
        ("7", "step", "{\n}"),
        ("8", "message", "last"),
    ]


@pytest.mark.parametrize(
    "url",
    ["", "ftp://host", "host:8790", "https://", "https://me:secret@host", "https://me:secret@host:x", "http://[::1"],
)
def test_what_is_no_address_is_refused_without_showing_a_password(url):
    with pytest.raises(TutelageError) as raised:
        Client(KnownServer(url=url))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("key", ["tut_ü", "tut_a\nb", "tut a"])
def test_what_can_be_no_key_is_a_sentence_before_anything_is_sent(key):
    with pytest.raises(TutelageError, match="the key: holds characters"):
        Client(KnownServer(url="http://127.0.0.1:1", key=key))


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_patience_that_is_no_time_is_a_sentence(monkeypatch, text):
    monkeypatch.setenv("TUTELAGE_PATIENCE", text)
    with pytest.raises(TutelageError, match="TUTELAGE_PATIENCE"):
        Client(KnownServer(url="http://127.0.0.1:1"))


@pytest.mark.parametrize("name", ["", ".", "..", "\udcff"])
def test_no_id_leads_to_another_address(name):
    with pytest.raises(TutelageError, match="is no id"):
        segment(name)


def test_what_is_no_text_is_told_and_not_sent(scripted):
    with scripted.client() as client:
        for call in (
            lambda: client.post("/v1/jobs", {"name": "\udcff"}),
            lambda: client.get("/v1/jobs", label="\udcff"),
        ):
            with pytest.raises(TutelageError, match="no text"):
                call()
    assert scripted.seen == []


def test_a_server_without_tls_is_told_as_such(scripted):
    with (
        Client(KnownServer(url=scripted.url.replace("http:", "https:")), patience=0) as client,
        pytest.raises(ConnectionLost, match="http://"),
    ):
        client.get("/v1/me")


def test_the_key_goes_with_every_request(scripted):
    scripted.answers[:] = [says(json.loads("{}"))]
    with scripted.client() as client:
        client.get("/v1/me")
    assert scripted.seen[0][2]["authorization"] == "Bearer tut_a_b"


def test_no_proxy_of_the_environment_is_asked_for_this_machine(scripted, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    scripted.answers[:] = [says({"fine": True})]
    with scripted.client() as client:
        assert client.get("/v1/me") == {"fine": True}
