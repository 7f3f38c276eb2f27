"""Following a job: every event once, through streams that break off, and the end as REST tells it."""

from __future__ import annotations

import json

import pytest
from server_scripts import breaks_off, says

from tutelage_server.cli.following import follow
from tutelage_server.client.client import ConnectionLost, ServerRefused


def stream(*numbers_and_states):
    """Server-sent events: a number is a step, a pair is a change of state."""
    text = ": ping\n\n"
    for each in numbers_and_states:
        number, state = each if isinstance(each, tuple) else (each, "")
        kind, data = ("state", {"to": state}) if state else ("step", {"step": number})
        event = {"number": number, "at": "2026-01-01T00:00:00Z", "kind": kind, "data": data}
        text += f"id: {number}\nevent: {kind}\ndata: {json.dumps(event)}\n\n"
    return text.encode()


def job(state, events=0):
    return says({"id": "job-1", "state": state, "events": events})


def numbers(scripted, **options):
    seen = []
    with scripted.client(**options) as client:
        found = follow(client, "job-1", lambda event: seen.append(event["number"]))
    return found, seen


def test_what_broke_off_goes_on_after_the_last_event_and_none_is_told_twice(scripted):
    scripted.answers[:] = [
        breaks_off(stream(1, 2)),
        breaks_off(),
        says(stream(2, 3, (4, "succeeded"))),
        job("succeeded", 4),
    ]
    found, seen = numbers(scripted)
    assert (found["state"], seen) == ("succeeded", [1, 2, 3, 4])
    assert [headers.get("last-event-id") for _, _, headers, _ in scripted.seen] == [None, "2", "2", None]


def test_a_stream_that_ends_before_the_job_does_is_opened_again(scripted):
    scripted.answers[:] = [
        says(stream(1)),
        job("running", 1),
        says(stream((2, "failed"))),
        job("failed", 2),
    ]
    found, seen = numbers(scripted)
    assert (found["state"], seen) == ("failed", [1, 2])


def test_what_rest_says_decides_not_the_stream(scripted):
    scripted.answers[:] = [
        says(stream((1, "waiting"), 2)),  # it waited for people, who were done long ago
        job("running", 3),
        says(stream(2, (3, "succeeded"))),
        job("succeeded", 3),
    ]
    found, seen = numbers(scripted)
    assert (found["state"], seen) == ("succeeded", [1, 2, 3])


def test_a_job_that_waits_for_people_ends_it(scripted):
    scripted.answers[:] = [says(stream((1, "waiting"))), job("waiting", 1)]
    assert numbers(scripted)[0]["state"] == "waiting"


def test_nothing_new_of_a_job_that_has_ended_is_the_end(scripted):
    scripted.answers[:] = [says(stream()), job("cancelled", 9)]
    with scripted.client() as client:
        assert follow(client, "job-1", after=9)["state"] == "cancelled"


def test_a_server_that_stays_away_is_a_lost_connection(scripted):
    scripted.answers[:] = [breaks_off(stream(1)), breaks_off()]
    with pytest.raises(ConnectionLost):
        numbers(scripted, patience=1.0)


def test_a_job_that_is_not_there_is_a_refusal_at_once(scripted):
    scripted.answers[:] = [says({"problems": [{"place": "job-1", "wrong": "there is no such job"}]}, 404)]
    with pytest.raises(ServerRefused):
        numbers(scripted)
    assert len(scripted.seen) == 1
