"""Follows a job through lost connections, and shows its events as those of a run are shown."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tutelage_server.cli.calling import say

if TYPE_CHECKING:
    from tutelage_server.client.client import Client

Show = Callable[[dict[str, Any]], None]
Job = dict[str, Any]

FINAL = frozenset({"succeeded", "failed", "cancelled"})
RESTS = FINAL | {"waiting"}
"States in which following ends: in the last, people are to act first."


def follow(client: Client, job_id: str, show: Show = lambda _: None, after: int = 0) -> Job:
    """Show a job's events as they come, each once, until it has ended or waits for people; return the job then.

    The stream may break off as often as it likes; what REST says of the job decides. Somebody who stops following never
    changes the job.

    Raises:
        ServerRefused: when there is no such job, or the key may not see it.
        ConnectionLost: when the server stays away longer than the client's patience.
    """
    last, lost_since, seen = after, None, ""
    while True:
        before = last
        try:
            for event in events(client, job_id, last):
                lost_since, last = None, event["number"]
                show(event)
                if event["kind"] == "state":
                    seen = event["data"].get("to", "")
                    if seen in RESTS:
                        break
            job: Job = client.get(_place(job_id))
        except Exception as error:
            lost_since = _patient(client, error, lost_since)
            continue
        if job["state"] in RESTS and (seen == job["state"] or (last == before and job["state"] in FINAL)):
            return job
        if last == before:
            time.sleep(0.5)  # a stream that ends at once, with nothing new, is not to be asked in a hurry


def events(client: Client, job_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
    """A job's events that come after a number, from the stream; each has number, at, kind and data."""
    for message in client.messages(f"{_place(job_id)}/events", last=after):
        event = msgspec.json.decode(message.data)
        if isinstance(event, dict) and isinstance(event.get("number"), int) and event["number"] > after:
            after = event["number"]
            yield event


def so_far(client: Client, job_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
    """A job's events up to now."""
    start: int | None = after
    while start is not None:
        page = client.get(f"{_place(job_id)}/events", after=start)
        yield from page["items"]
        start = page["next"]


@contextlib.contextmanager
def shown(as_json: bool, bars: bool = True, lines: bool = False) -> Iterator[Show]:
    """Shows events of jobs: JSON lines on stdout, a progress bar on a terminal, else quiet lines on stderr.

    Args:
        bars: whether a terminal gets progress bars.
        lines: where it gets none, whether each event is a line on stdout, for those who asked for the events.
    """
    from tutelage.cli.output import is_terminal, print_json
    from tutelage.cli.views import sentence, view

    if as_json:
        yield print_json
        return
    if lines and not (bars and is_terminal(sys.stdout) and is_terminal(sys.stderr)):
        yield lambda event: _print_line(sentence(as_run_event(event)))
        return
    with view(as_json=False) as show:
        yield lambda event: show(as_run_event(event))


def _print_line(line: str) -> None:
    if line:
        click.echo(line)


def told(job: Job, commands: bool = True) -> None:
    """How a job ended, and what to do now, for people."""
    from tutelage_server.cli.job_pages import next_commands

    reason = f": {job['reason']}" if job.get("reason") else ""
    say(f"{job['name']} ({job['id']}) {_told(job['state'])}{reason}")
    for command in next_commands(job) if commands else []:
        say(f"  {command}")


def _told(state: Any) -> str:
    """A job's state as what is said of it."""
    words = {
        "waiting": "waits for people",
        "cancelled": "was cancelled",
        "succeeded": "has succeeded",
        "failed": "has failed",
    }
    return words.get(state, f"is {state}")


def as_run_event(event: dict[str, Any]) -> dict[str, Any]:
    """A job's event as `tutelage.cli.views` shows those of runs."""
    data = event["data"]
    if event["kind"] != "state":
        return {**data, "event": event["kind"], "time": event["at"]}
    reason = f": {data['reason']}" if data.get("reason") else ""
    return {"event": "notice", "time": event["at"], "text": f"the job {_told(data.get('to'))}{reason}"}


def _patient(client: Client, error: Exception, since: float | None) -> float:
    """When the server was lost, if it may come back; raises `error` when it was away for too long."""
    from tutelage_server.client.client import AGAIN, ConnectionLost, ServerRefused

    temporary = isinstance(error, ConnectionLost) or (isinstance(error, ServerRefused) and error.status in AGAIN)
    now = time.monotonic()
    if not temporary or (since is not None and now - since > client.enough):
        raise error
    if since is None:
        say("the connection is lost; the job goes on, and so does this when the server is back")
    time.sleep(0.5)
    return since or now


def _place(job_id: str) -> str:
    from tutelage_server.client.client import segment

    return f"/v1/jobs/{segment(job_id.removeprefix('job:'))}"
