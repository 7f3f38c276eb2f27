"""What stands around every handler: problems, bodies, headers, ids, tags."""

from __future__ import annotations

import errno
import json
import socket
import threading
import time

import pytest
from litestar import get, post
from serving import client, make_settings, make_store, served

from tutelage.errors import Problem, TutelageError
from tutelage_server import app as app_module
from tutelage_server.jobs.states import NotAllowed
from tutelage_server.middleware import DEEPEST_BODY, LARGEST_BODY, check_depth
from tutelage_server.problems import Refused, refused
from tutelage_server.settings import load_settings


def failing(error, path="/v1/fails"):
    @get(path, sync_to_thread=False)
    def fails() -> None:
        raise error

    return fails


def asking(tmp_path, monkeypatch, *handlers, **settings):
    """A client of an application with further handlers."""
    monkeypatch.setattr(app_module, "OPERATIONS", [*app_module.OPERATIONS, *handlers])
    return client(make_settings(tmp_path, **settings))


@pytest.mark.parametrize(
    ("error", "status", "code", "said"),
    [
        (
            refused(404, "the file", "is not there", "list them", code="gone"),
            404,
            "gone",
            "the file: is not there; list them",
        ),
        (
            TutelageError([Problem(place="a", wrong="is b"), Problem(place="c", wrong="is d")]),
            422,
            "",
            "a: is b\nc: is d",
        ),
        (NotAllowed("job-1", "failed", "paused"), 409, "state_conflict", "job-1: is failed and can't become paused"),
        (OSError(errno.ENOSPC, "No space left on device", "/secret/path"), 503, "disk_full", "is full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), 503, "disk_full", "is full"),
        (RecursionError("maximum"), 400, "", "nested too deeply"),
        (OSError(errno.EACCES, "Permission denied", "/secret/path"), 500, "", "the server: failed"),
        (RuntimeError("password=hunter2"), 500, "", "the server: failed"),
    ],
)
def test_an_exception_becomes_a_problem_document(tmp_path, monkeypatch, error, status, code, said):
    with asking(tmp_path, monkeypatch, failing(error)) as http:
        answer = http.get("/v1/fails")
    problem = answer.json()
    assert answer.status_code == problem["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem.get("code", "") == code
    assert said in problem["detail"]
    assert problem["instance"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert "hunter2" not in answer.text
    assert (answer.headers.get("retry-after") is not None) == (status == 503)


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (
            refused(401, "the key", "is missing", code="invalid_key"),
            401,
            ("authentication_error", None, "invalid_api_key"),
        ),
        (refused(422, "training_file", "is empty", code="bad"), 422, ("invalid_request_error", "training_file", "bad")),
        (refused(404, "the model", "is not there"), 404, ("not_found_error", None, None)),
        (refused(429, "the key", "is used up"), 429, ("rate_limit_error", None, None)),
        (RuntimeError("hunter2"), 500, ("server_error", None, None)),
    ],
)
def test_below_openai_it_becomes_an_openai_error(tmp_path, monkeypatch, error, status, expected):
    with asking(tmp_path, monkeypatch, failing(error, "/openai/v1/fails")) as http:
        answer = http.get("/openai/v1/fails")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()["error"]
    assert (said["type"], said["param"], said["code"]) == expected
    assert "hunter2" not in answer.text


def test_a_failure_is_logged_with_its_request(tmp_path, monkeypatch, caplog):
    with asking(tmp_path, monkeypatch, failing(RuntimeError("deep inside"))) as http:
        answer = http.get("/v1/fails?secret=hunter2")
    assert answer.headers["x-request-id"] in caplog.text
    assert "deep inside" in caplog.text
    assert "hunter2" not in caplog.text
    assert "tut_" not in caplog.text


def test_every_answer_has_an_id_of_its_own_and_headers_that_bind_browsers(tmp_path):
    with client(make_settings(tmp_path)) as http:
        answers = [
            http.get(path, headers={"x-request-id": "mine\t"})
            for path in ("/v1/me", "/v1/healthz", "/nowhere", "/docs")
        ]
        answers.append(http.get("/v1/me", headers={"authorization": ""}))
        answers.append(http.request("TRACE", "/v1/me"))
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "script" not in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 401, 405]


def test_a_method_that_is_not_allowed_is_answered_with_those_that_are(tmp_path):
    with client(make_settings(tmp_path)) as http:
        answer = http.request("TRACE", "/v1/keys/one")
        options = http.options("/v1/keys/one")
    assert answer.status_code == 405
    for each in (answer, options):
        assert set(each.headers["allow"].split(", ")) == {"GET", "DELETE", "OPTIONS"}


def echo():
    @post("/v1/echo", sync_to_thread=False)
    def echoes(data: dict[str, object]) -> dict[str, object]:
        return data

    return echoes


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"a": 1}', 201, ""),
        (b'{"a": "' + b"x" * (LARGEST_BODY - 9) + b'"}', 201, ""),
        (b'{"a": "' + b"x" * (LARGEST_BODY - 8) + b'"}', 413, "larger than"),
        (b'{"a":' * (DEEPEST_BODY - 1) + b"{}" + b"}" * (DEEPEST_BODY - 1), 201, ""),
        (b'{"a":' * DEEPEST_BODY + b"{}" + b"}" * DEEPEST_BODY, 400, "nested deeper"),
        (b"[" * 500_000, 400, "nested deeper"),
        (b'{"a": [' + b"[]," * 10_000 + b"[]]}", 201, ""),
        (b'{"a": "' + b"[" * 1000 + b'"}', 201, ""),
        (b'{"a": "' + b'\\"[' * 1000 + b'"}', 201, ""),
        (b'{"a": "' + b"[" * 1000, 400, ""),
        (b'{"a": 1' + b"0" * 5000 + b"}", 400, ""),
        (b'{"a": 1e999999}', 400, ""),
        (b'{"a": NaN}', 400, ""),
        (b'{"a": "\\u0000"}', 400, "NUL"),
        (b'{"a": "\\\\u0000"}', 201, ""),
        (b'{"a": "\xff"}', 400, ""),
        (b'{"a": "\\ud800"}', 400, ""),
        (b"", 422, "is missing"),
        (b"[1]", 422, ""),
        (b"nonsense", 400, "malformed"),
    ],
    ids=range(20),
)
def test_bodies_of_every_size_and_shape(tmp_path, monkeypatch, body, status, said):
    with asking(tmp_path, monkeypatch, echo()) as http:
        answer = http.post("/v1/echo", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text[:300]
    assert said in answer.text[:1000]
    if status == 201:
        assert answer.json() == json.loads(body)


def test_an_encoded_body_is_refused_before_it_can_swell(tmp_path, monkeypatch):
    with asking(tmp_path, monkeypatch, echo()) as http:
        answer = http.post("/v1/echo", content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


def test_depth_is_counted_outside_of_strings():
    check_depth(b'["' + b"[" * 1000 + b'", ' + b"[1]," * 100 + b"[1]]")
    check_depth(b'["\\\\", ' + b"[1]," * 100 + b"[1]]")
    with pytest.raises(Refused):
        check_depth(b'["\\\\", ' + b"[" * 64 + b"]" * 65)


@pytest.mark.parametrize("path", ["/v1/keys/a%00b", "/v1/keys?cursor=%00"])
def test_nul_in_an_address_is_refused(tmp_path, path):
    with client(make_settings(tmp_path)) as http:
        assert http.get(path).status_code == 400


def test_an_answer_that_is_known_is_not_sent_again(tmp_path):
    with client(make_settings(tmp_path)) as http:
        first = http.get("/v1/keys")
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"x", {tag}'):
            again = http.get("/v1/keys", headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
            assert again.headers["x-request-id"]
        assert http.get("/v1/keys", headers={"if-none-match": '"x"'}).json() == first.json()
        http.post("/v1/keys", json={"name": "x", "scopes": ["read"]})
        changed = http.get("/v1/keys", headers={"if-none-match": tag})
        assert changed.status_code == 200
        assert changed.headers["etag"] != tag


@pytest.mark.parametrize(
    ("host", "hosts", "asked", "allowed"),
    [
        ("127.0.0.1", [], "127.0.0.1:8790", True),
        ("127.0.0.1", [], "LOCALHOST", True),
        ("127.0.0.1", [], "[::1]:8790", True),
        ("127.0.0.1", [], "10.0.0.5", False),
        ("127.0.0.1", ["gpu.example"], "gpu.example:443", True),
        ("127.0.0.1", ["gpu.example"], "gpu.example.evil", False),
        ("127.0.0.1", ["gpu.example"], "gpu.example@evil.example", False),
        ("0.0.0.0", [], "10.0.0.5:8790", True),
        ("0.0.0.0", [], socket.gethostname(), True),
        ("0.0.0.0", [], "evil.example", False),
        ("127.0.0.1", [], "[::1", False),
        ("127.0.0.1", [], "", False),
    ],
)
def test_which_hosts_are_the_servers_own(tmp_path, host, hosts, asked, allowed):
    with client(make_settings(tmp_path, host=host, hosts=hosts)) as http:
        answer = http.get("/v1/me", headers={"host": asked})
    assert answer.status_code == 200 if allowed else answer.status_code in (400, 403)


def test_its_own_pages_may_call(tmp_path):
    with client(make_settings(tmp_path)) as http:
        assert http.get("/v1/me", headers={"origin": "http://127.0.0.1"}).status_code == 200


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real server that waits half a second for bodies."""
    with served(tmp_path_factory.mktemp("slow"), ("--no-dispatcher",), body_seconds=0.5) as server:
        yield server


def raw(server, request, *, wait=0.0):
    """What a server sends back to bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        if wait:
            time.sleep(wait)
        answer = b""
        while True:
            part = connection.recv(65536)
            answer += part
            if not part or b"\r\n\r\n" in answer:
                return answer


def head(server, length, path="/v1/keys", host=None):
    host = host or server.url.removeprefix("http://")
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_a_body_that_does_not_come_is_not_waited_for(server):
    answer = raw(server, head(server, 100) + b'{"name":')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not come within 0.5 s" in answer or b"application/problem+json" in answer


def test_a_body_that_is_announced_too_large_is_not_read(server):
    assert raw(server, head(server, 10**12)).startswith(b"HTTP/1.1 413")


def test_slow_bodies_hold_up_no_one(server):
    connections = []
    for _ in range(30):
        host, port = server.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(head(server, 100) + b"{")
        connections.append(connection)
    with server.client() as http:
        assert http.get("/v1/me").status_code == 200
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    "lines",
    [
        b"Host: evil.example\r\n",
        b"Host: 127.0.0.1\r\nHost: evil.example\r\n",
        b"",
        b"Host: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Host: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        b"Host: 127.0.0.1\r\nX-A: b\x00c\r\n",
        b"Host: 127.0.0.1\r\nX-Big: " + b"a" * 100_000 + b"\r\n",
        b"Host : 127.0.0.1\r\n",
        b"Host: 127.0.0.1\r\nAuthorization: Bearer x\r\n",
    ],
    ids=range(9),
)
def test_tricks_with_headers_are_refused(server, lines):
    key = f"Authorization: Bearer {server.key}\r\n".encode()
    answer = raw(server, b"GET /v1/keys HTTP/1.1\r\n" + lines + key + b"\r\n0\r\n\r\n")
    assert answer == b"" or answer.split()[1].startswith(b"4"), answer[:200]


def test_a_thousand_requests_from_threads_each_get_their_own_answer(tmp_path):
    store = make_store(tmp_path)
    with client(make_settings(tmp_path, limits={"requests_per_minute": 100_000}), store) as http:
        made = [http.post("/v1/keys", json={"name": f"k{n}", "scopes": ["read"]}).json() for n in range(4)]
        wrong = []

        def ask(key):
            for _ in range(50):
                answer = http.get("/v1/me", headers={"authorization": f"Bearer {key['key']}"})
                if answer.json().get("key_id") != key["id"]:
                    wrong.append(answer.text)

        threads = [threading.Thread(target=ask, args=(key,)) for key in made for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_settings_that_make_no_sense_are_named(tmp_path):
    with pytest.raises(TutelageError, match="port"):
        load_settings(port=70_000, home=str(tmp_path))
