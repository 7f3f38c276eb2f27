from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import tutelage
from tutelage.plugins import host
from tutelage.reward import rewards_of


class Service:
    """A real server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict, dict]] = []
        self.replies: list = []
        "What to answer, in turn: a function of the request, or a status with headers; the last goes on."
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.asked.append((dict(self.headers), body))
                reply = service.replies.pop(0) if len(service.replies) > 1 else service.replies[0]
                status, headers, content = reply if isinstance(reply, tuple) else (200, {}, reply(body))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def service():
    made = Service()
    yield made
    made.stop()


def lengths(body) -> bytes:
    return json.dumps({"rewards": [len(answer) for answer in body["answers"]]}).encode()


def reward(service, **settings):
    problems = []
    given = {"kind": "http", "url": service.url, "pause": 0.0, **settings}
    found = rewards_of([given], host(), "rewards", problems)
    assert not problems, problems
    return found[0].reward


PROMPTS = [tutelage.Prompted("why?", "because", {"topic": 1}), tutelage.Prompted([{"role": "user", "content": "hm"}])]


def test_prompts_and_answers_go_out_and_rewards_come_back(service):
    service.replies = [lengths]
    assert reward(service).score(PROMPTS, ["ab", "déjà"]) == [2, 4]
    ((headers, body),) = service.asked
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert body == {
        "prompts": ["why?", [{"role": "user", "content": "hm"}]],
        "answers": ["ab", "déjà"],
        "references": ["because", ""],
        "fields": [{"topic": 1}, {}],
    }


def test_many_answers_go_in_several_requests(service):
    service.replies = [lengths]
    answers = ["a" * number for number in range(7)]
    assert reward(service, batch_size=3).score([tutelage.Prompted("why?")] * 7, answers) == list(range(7))
    assert [len(body["answers"]) for _, body in service.asked] == [3, 3, 1]


def test_a_token_comes_from_the_environment(service, monkeypatch):
    service.replies = [lengths]
    monkeypatch.setenv("SOME_TOKEN", "s3cret")
    reward(service, token_from="SOME_TOKEN").score(PROMPTS, ["ab", "c"])
    assert service.asked[0][0]["Authorization"] == "Bearer s3cret"
    monkeypatch.delenv("SOME_TOKEN")
    problems = []
    rewards_of([{"kind": "http", "url": service.url, "token_from": "SOME_TOKEN"}], host(), "rewards", problems)
    assert "SOME_TOKEN is not set" in str(problems[0])


def test_a_busy_service_is_asked_again(service):
    service.replies = [(503, {}, b""), (429, {}, b""), lengths]
    assert reward(service).score(PROMPTS, ["ab", "c"]) == [2, 1]
    assert len(service.asked) == 3
    service.replies = [(500, {}, b"")]
    with pytest.raises(tutelage.RunFailed, match=r"answered with status 500 .*\(3 attempts\)"):
        reward(service, retries=2).score(PROMPTS, ["ab", "c"])
    assert len(service.asked) == 6


def test_a_refusal_is_not_asked_again(service):
    service.replies = [(403, {}, b"")]
    with pytest.raises(tutelage.RunFailed, match=rf"reward http: {service.url} answered with status 403"):
        reward(service).score(PROMPTS, ["ab", "c"])
    assert len(service.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(service, status):
    other = Service()
    other.replies = [lengths]
    service.replies = [(status, {"Location": other.url}, b"")]
    with pytest.raises(tutelage.RunFailed, match=f"answered with status {status}"):
        reward(service).score(PROMPTS, ["ab", "c"])
    assert other.asked == []
    other.stop()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"rewards": [1]}', "gave 1 rewards for 2 answers"),
        (b'{"rewards": [1, null]}', r"Expected `float`, got `null` - at `\$.rewards\[1\]`"),
        (b'{"rewards": [1, NaN]}', "did not answer with"),
        (b'{"rewards": [1, true]}', "Expected `float`, got `bool`"),
        (b'{"rewards": [1, "2"]}', "Expected `float`, got `str`"),
        (b'{"rewards": [1, 1e999]}', "did not answer with"),
        (b"[1, 2]", "Expected `object`, got `array`"),
        (b"", "did not answer with"),
        (b"<html>", "did not answer with"),
    ],
)
def test_what_is_no_list_of_rewards_is_refused(service, content, said):
    service.replies = [(200, {}, content)]
    with pytest.raises(tutelage.RunFailed, match=said):
        reward(service).score(PROMPTS, ["ab", "c"])


def test_an_endless_response_is_cut(service, monkeypatch):
    from tutelage_plugins.rewards import http

    monkeypatch.setattr(http, "LONGEST_ANSWER", 1000)
    service.replies = [(200, {}, b" " * 1001)]
    with pytest.raises(tutelage.RunFailed, match="answered with more than 1,000 bytes"):
        reward(service).score(PROMPTS, ["ab", "c"])


def test_who_does_not_answer_in_time_or_is_not_there_is_told(service):
    released = threading.Event()

    def slow(body):
        released.wait(30)
        return b""

    service.replies = [slow]
    with pytest.raises(tutelage.RunFailed, match=r"can't be reached: timed out \(2 attempts\)"):
        reward(service, seconds=0.1, retries=1).score(PROMPTS, ["ab", "c"])
    released.set()
    gone = Service()
    gone.stop()
    with pytest.raises(tutelage.RunFailed, match=r"can't be reached: .*refused.* \(1 attempts\)"):
        reward(gone, retries=0).score(PROMPTS, ["ab", "c"])


@pytest.mark.parametrize("url", ["ftp://a/b", "file:///etc/passwd", "example.org/score", "http://", "http://me:pw@a/b"])
def test_other_addresses_are_refused(url):
    problems = []
    rewards_of([{"kind": "http", "url": url}], host(), "rewards", problems)
    assert "url" in str(problems[0])
