"""`tutelage serve`: where it listens, its first key, its dispatcher, how it ends."""

from __future__ import annotations

import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from serving import children, served, start

DISPATCHER = Path(sys.modules["serving"].__file__).resolve().parents[2] / "server/tutelage_server/jobs/dispatcher.py"


def run(tmp_path, *arguments, **environment):
    """`tutelage serve` until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "tutelage", "serve", "--home", str(tmp_path / "home"), "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TUTELAGE_CONFIG": str(tmp_path / "config"), **environment},
    )


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "public address, and without TLS"),
        (["--host", "192.0.2.1", "--certificate", "x.pem"], "belong together"),
        (["--host", "0.0.0.0", "--certificate", "x.pem", "--certificate-key", "y.pem"], "no such file: x.pem"),
        (["--host", "0.0.0.0", "--allow-plain-http"], "keys: there are none"),
        (["--host", "192.0.2.1", "--allow-plain-http"], "can't listen on 192.0.2.1"),
        (["--port", "70000"], "port"),
        (["--tenant", "x"], "belongs to --make-key"),
        (["--make-key", ""], "the key's name"),
        (["--database", "mysql://host/name"], "no address of a database (mysql)"),
        (["--database", "postgresql+psycopg://host:port/name"], "no address of a database"),
    ],
)
def test_what_is_not_safe_or_not_possible_is_refused_with_a_sentence(tmp_path, arguments, said):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "config" / "servers.json").exists()


def test_a_certificate_that_is_none_is_refused_before_a_key_is_made(tmp_path):
    (tmp_path / "x.pem").write_text("no certificate")
    done = run(tmp_path, "--certificate", str(tmp_path / "x.pem"), "--certificate-key", str(tmp_path / "x.pem"))
    assert (done.returncode, "can't be used" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    assert not (tmp_path / "config" / "servers.json").exists()


def test_a_database_that_is_away_is_told_at_once(tmp_path):
    done = run(tmp_path, "--database", "postgresql+psycopg://u:hunter2@127.0.0.1:1/x")
    assert done.returncode == 1
    assert "the database: can't be used now" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_a_damaged_database_is_told_in_a_sentence(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tutelage.db").write_bytes(os.urandom(8192))
    ended = run(tmp_path)
    assert ended.returncode == 1
    assert "tutelage.db is damaged" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_first_key_is_made_once_and_kept_for_this_user_alone(tmp_path):
    with served(tmp_path, ("--no-dispatcher",)) as server:
        with server.client() as http:
            me = http.get("/v1/me").json()
            assert me["tenant"] == "default"
            assert me["scopes"] == ["admin", "advise", "rank", "read", "submit"]
        file = server.config / "servers.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["servers"].popitem()[1] == {"url": server.url, "key": server.key}
        assert server.key not in (tmp_path / "server.log").read_text()
        before = file.read_text()
        assert server.stop() == 0
    with served(tmp_path, ("--no-dispatcher",)) as again:
        assert (again.config / "servers.json").read_text() == before
        with again.client() as http:
            assert http.get("/v1/me").json()["key_id"] == me["key_id"]


def test_keys_are_made_for_a_server_that_none_reaches_yet(tmp_path):
    made = json.loads(run(tmp_path, "--make-key", "boss", "--tenant", "lab", "--json").stdout)
    plain = run(tmp_path, "--make-key", "second").stdout.strip()
    assert plain.startswith("tut_")
    assert plain != made["key"]
    # With a key there, a public address is served; nothing is printed that opens it.
    with subprocess.Popen(
        [sys.executable, "-m", "tutelage", "serve", "--home", str(tmp_path / "home"), "--port", "0", "--host", "0.0.0.0",
         "--allow-plain-http", "--no-dispatcher", "--json"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        started = json.loads(process.stdout.readline())
        assert started["first_key"] is None
        port = started["url"].rpartition(":")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            assert http.get("/v1/me").status_code == 401
            answer = http.get("/v1/me", headers={"authorization": f"Bearer {made['key']}"})
            assert answer.json()["tenant"] == "lab"
        process.send_signal(signal.SIGTERM)


def test_settings_come_from_a_file_then_variables_then_options(tmp_path):
    made = tmp_path / "elsewhere"
    run(tmp_path, "--make-key", "x", "--home", str(made), TUTELAGE_SERVER_HOME=str(tmp_path / "no"))
    assert (made / "tutelage.db").exists()
    assert not (tmp_path / "no").exists()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_it_serves_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    with served(tmp_path, ("--no-dispatcher",), certificate=str(certificate), certificate_key=str(key)) as server:
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=server.url, verify=trust, trust_env=False) as http:
            answer = http.get("/v1/healthz")
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]


needs_dispatcher = pytest.mark.skipif(not DISPATCHER.exists(), reason="there is no dispatcher")


@needs_dispatcher
def test_both_processes_end_when_it_is_asked_to(tmp_path):
    with served(tmp_path) as server:
        dispatcher = wait_for(lambda: children(server.pid))
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 15
        assert not any(alive(pid) for pid in dispatcher)


@needs_dispatcher
def test_ctrl_c_in_a_terminal_ends_it_too(tmp_path):
    with served(tmp_path) as server:
        (dispatcher,) = wait_for(lambda: children(server.pid))
        assert os.getsid(dispatcher) != os.getsid(server.pid)  # the terminal's signal goes to the server alone
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        assert not alive(dispatcher)


@needs_dispatcher
def test_a_dispatcher_that_dies_is_started_anew(tmp_path):
    with served(tmp_path) as server:
        (first,) = wait_for(lambda: children(server.pid))
        os.kill(first, signal.SIGKILL)
        (second,) = wait_for(lambda: [pid for pid in children(server.pid) if pid != first])
        assert alive(second)
        with server.client() as http:
            assert http.get("/v1/readyz").status_code == 200
    assert "the dispatcher ended (-9)" in (tmp_path / "server.log").read_text()


@needs_dispatcher
def test_a_server_that_is_killed_leaves_no_dispatcher_behind(tmp_path):
    with served(tmp_path) as server:
        dispatcher = wait_for(lambda: children(server.pid))
        server.kill()
        wait_for(lambda: not any(alive(pid) for pid in dispatcher))
        again = start(tmp_path)
        try:
            with again.client() as http:
                assert http.get("/v1/me").status_code == 200
        finally:
            again.stop()
            again.process.stdout.close()


@needs_dispatcher
def test_the_dispatcher_reads_what_the_server_was_told(tmp_path):
    environment = {"TUTELAGE_SERVER_HOME": str(tmp_path / "no")}
    with served(tmp_path, ("--home", str(tmp_path / "home")), environment) as server:
        (dispatcher,) = wait_for(lambda: children(server.pid))
        words = Path(f"/proc/{dispatcher}/cmdline").read_text().split("\0")
        file = Path(words[words.index("--settings") + 1])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["home"] == str(tmp_path / "home")
        assert b"TUTELAGE_SERVER_HOME" not in Path(f"/proc/{dispatcher}/environ").read_bytes()
    assert not (tmp_path / "no").exists()


def test_open_requests_do_not_keep_it_from_ending(tmp_path):
    with served(tmp_path, ("--no-dispatcher",)) as server:
        address = server.url.removeprefix("http://").split(":")
        import socket

        waiting = socket.create_connection((address[0], int(address[1])))
        waiting.sendall(
            f"POST /v1/keys HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.key}\r\nContent-Length: 9\r\n\r\n".encode()
        )
        threading.Event().wait(0.2)
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 10
        waiting.close()


def test_the_server_loads_no_torch(tmp_path):
    code = "import sys, tutelage_server.app, tutelage_server.serving; print(sorted({'torch', 'transformers', 'lightning', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
