"""Streams of events: without a gap, taken up anywhere, cheap for the store, and gone with their clients."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from job_service import JobService

from tutelage_server.jobs import streaming
from tutelage_server.jobs.streaming import Feed, event_stream
from tutelage_server.problems import Refused
from tutelage_server.store.store import StoreUnavailable

SSE = {"accept": "text/event-stream"}


@pytest.fixture
def service(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "POLL_SECONDS", 0.02)
    with JobService(tmp_path) as made:
        yield made


def messages(text):
    """Server-sent events as a browser reads them: (id, event, data)."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def ended(service, steps=5):
    job = service.job()
    service.become(job, "starting", "running")
    for step in range(steps):
        service.tell(job, step=step)
    service.become(job, "succeeded")
    return job


def test_a_stream_holds_every_event_and_ends_with_the_job(service):
    job = ended(service)
    answer = service.http.get(f"/v1/jobs/{job}/events", headers=SSE)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = messages(answer.text)
    assert [number for number, *_ in found] == list(range(1, 10))
    assert [kind for _, kind, _ in found] == ["state"] * 3 + ["step"] * 5 + ["state"]
    assert found[-1][2]["data"]["to"] == "succeeded"
    assert found[3][2] | {"at": ""} == {"number": 4, "at": "", "kind": "step", "data": {"step": 0}}


@pytest.mark.parametrize("after", range(11))
def test_a_stream_goes_on_after_any_event(service, after):
    job = ended(service)
    wanted = list(range(after + 1, 10))
    for options in ({"headers": {**SSE, "last-event-id": str(after)}}, {"headers": SSE, "params": {"after": after}}):
        answer = service.http.get(f"/v1/jobs/{job}/events", **options)
        assert [number for number, *_ in messages(answer.text)] == wanted


def test_a_strange_last_event_id_is_as_none(service):
    job = ended(service)
    for strange in ("x", "-1", "1.5", "²", ""):
        answer = service.http.get(f"/v1/jobs/{job}/events", headers={**SSE, "last-event-id": strange.encode()})
        assert len(messages(answer.text)) == 9


def test_a_page_of_events_is_plain_json(service):
    job = ended(service)
    path = f"/v1/jobs/{job}/events"
    page = service.http.get(path, params={"limit": 4}).json()
    assert ([each["number"] for each in page["items"]], page["next"]) == ([1, 2, 3, 4], 4)
    rest = service.http.get(path, params={"after": 4}).json()
    assert ([each["number"] for each in rest["items"]], rest["next"]) == ([5, 6, 7, 8, 9], None)
    assert service.http.get(path, params={"after": -1}).status_code in (400, 422)


def test_more_events_than_a_page_come_without_a_gap(service, monkeypatch):
    monkeypatch.setattr(streaming, "_PAGE", 7)
    job = ended(service, steps=40)
    answer = service.http.get(f"/v1/jobs/{job}/events", headers=SSE)
    assert [number for number, *_ in messages(answer.text)] == list(range(1, 45))


async def read(stream, count):
    """The numbers of so many events of a stream."""
    found = []
    async for part in stream:
        found += [number for number, *_ in messages(part.decode())]
        if len(found) >= count:
            break
    return found


def test_many_streams_share_their_questions(service):
    job = service.job()

    async def go():
        feed = Feed(service.store, poll=0.05)
        streams = [event_stream(feed, job, "key", 0) for _ in range(200)]
        reading = [asyncio.create_task(read(each, 12)) for each in streams]
        await asyncio.sleep(0.5)
        assert feed.streams == 200
        before = feed.queries
        await asyncio.sleep(0.5)
        assert feed.queries - before <= 15  # two hundred streams, and about one question a tick
        before = feed.queries
        await asyncio.to_thread(lambda: [service.tell(job, step=step) for step in range(11)])
        found = await asyncio.gather(*reading)
        assert all(each[:12] == list(range(1, 13)) for each in found)
        assert feed.queries - before < 100
        for each in streams:
            await each.aclose()
        return feed

    feed = asyncio.run(go())
    assert (feed.streams, feed._poller, feed._news, feed._pages, +feed._keys) == (0, None, {}, {}, {})


def test_who_leaves_leaves_nothing_behind_and_the_job_goes_on(service):
    job = service.job()
    service.become(job, "starting", "running")

    async def go():
        feed = Feed(service.store, poll=0.02)
        stream = event_stream(feed, job, "key", 0)
        waiting = asyncio.create_task(read(stream, 100))
        await asyncio.sleep(0.2)
        assert feed.streams == 1
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await stream.aclose()
        assert (feed.streams, feed._poller) == (0, None)
        again = event_stream(feed, job, "key", 2)  # the poller starts anew for the next
        assert await read(again, 1) == [3]
        await again.aclose()

    asyncio.run(go())
    assert (service.row(job).state, service.row(job).wanted) == ("running", "run")


def test_a_client_that_disconnects_ends_its_stream_in_the_application(service):
    """The application itself, told by its server that the client is gone in the middle of a stream."""
    job = service.job()

    async def go():
        app = service.http.app
        gone = asyncio.Event()
        parts: list[bytes] = []
        asked = False

        async def receive():
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            parts.append(message.get("body", b""))

        key = service.http.headers["authorization"].encode()
        headers = [(b"host", b"127.0.0.1"), (b"authorization", key), (b"accept", b"text/event-stream")]
        path = f"/v1/jobs/{job}/events"
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}
        scope |= {"asgi": {"version": "3.0"}, "http_version": "1.1", "root_path": "", "extensions": {}, "state": {}}
        app.state.feed = feed = Feed(service.store, poll=0.02)
        running = asyncio.create_task(app(scope, receive, send))
        while not messages(b"".join(parts).decode()):
            await asyncio.sleep(0.02)
        assert feed.streams == 1
        gone.set()
        await asyncio.wait_for(running, 10)
        assert (feed.streams, feed._poller) == (0, None)

    asyncio.run(go())
    assert service.row(job).state == "queued"


def test_a_store_that_is_gone_for_a_while_breaks_no_stream(service, monkeypatch):
    job = service.job()

    async def go():
        feed = Feed(service.store, poll=0.02, heartbeat=0.1)
        stream = event_stream(feed, job, "key", 0)
        assert await read(stream, 1) == [1]
        real, store = type(service.store).reading, type(service.store)

        def gone(_):
            raise StoreUnavailable.at("the database", "can't be used now")

        stream = event_stream(feed, job, "key", 1)
        waiting = asyncio.create_task(read(stream, 1))
        with monkeypatch.context() as patch:
            patch.setattr(store, "reading", gone)
            await asyncio.sleep(0.3)
            assert not waiting.done()
        assert store.reading is real
        await asyncio.to_thread(service.tell, job)
        assert await asyncio.wait_for(waiting, 10) == [2]
        await stream.aclose()

    asyncio.run(go())


def test_a_quiet_stream_beats(service):
    job = service.job()

    async def go():
        stream = event_stream(Feed(service.store, poll=0.02, heartbeat=0.1), job, "key", 1)
        parts = [await anext(stream) for _ in range(3)]
        await stream.aclose()
        return parts

    assert asyncio.run(go()) == [b"retry: 2000\n\n", b": still here\n\n", b": still here\n\n"]


def test_a_key_has_so_many_streams(service, monkeypatch):
    monkeypatch.setattr(streaming, "MOST_STREAMS", 1)
    job = service.job()

    async def go():
        feed = Feed(service.store)
        with feed.watching(job, "key"), feed.watching(job, "other"):
            with pytest.raises(Refused) as refused, feed.watching(job, "key"):
                pass
            assert refused.value.status == 429
        assert feed.streams == 0

    asyncio.run(go())


def test_a_log_is_followed_to_its_end(service):
    job = service.job()
    service.become(job, "starting", "running")
    folder = service.folder(job) / "attempts" / "1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("one\n")

    async def go():
        from tutelage_server.jobs.logs import Log, log_stream

        found = b""
        async for part in log_stream(Feed(service.store, poll=0.05), Log(service.settings, job), job, "key", 2):
            found += part
            if found == b"e\n":
                with (folder / "log.txt").open("a") as file:
                    file.write("two\n")
                await asyncio.to_thread(service.become, job, "succeeded")
        return found

    assert asyncio.run(asyncio.wait_for(go(), 20)) == b"e\ntwo\n"
    assert service.http.get(f"/v1/jobs/{job}/log", params={"follow": "true"}).content == b"one\ntwo\n"
