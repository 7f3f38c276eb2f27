"""The log of a job: all that its attempts wrote, as text."""

from __future__ import annotations

import codecs
import time
from typing import TYPE_CHECKING, Any

import click

from tutelage.cli.output import print_json

if TYPE_CHECKING:
    from tutelage_server.client.client import Client

SECONDS_BETWEEN = 1.0


def print_log(client: Client, job_id: str, as_json: bool = False) -> None:
    """The log up to now, as it is or as JSON lines."""
    log = _Log(client, job_id, as_json)
    log.more()
    log.end()


def follow_log(client: Client, job_id: str, as_json: bool = False) -> dict[str, Any]:
    """The log as it grows, through lost connections, until the job has ended or waits for people; the job then.

    Raises:
        ServerRefused, ConnectionLost
    """
    from tutelage_server.cli.following import RESTS
    from tutelage_server.client.client import segment

    log = _Log(client, job_id, as_json)
    while True:
        job: dict[str, Any] = client.get(f"/v1/jobs/{segment(job_id.removeprefix('job:'))}")
        grown = log.more()  # after the state was read: what an ended job wrote is there
        if job["state"] in RESTS:
            log.end()
            return job
        if not grown:
            time.sleep(SECONDS_BETWEEN)


class _Log:
    def __init__(self, client: Client, job_id: str, as_json: bool) -> None:
        from tutelage_server.client.client import segment

        self._client = client
        self._place = f"/v1/jobs/{segment(job_id.removeprefix('job:'))}/log"
        self._as_json = as_json
        self._begun = ""
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def more(self) -> bool:
        """Print what came since the last time, and say whether that was anything."""
        answer = self._client.request("GET", self._place, params={"offset": self._offset}, headers={"accept": "*/*"})
        self._offset += len(answer.content)
        text = self._decoder.decode(answer.content)
        if self._as_json:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                print_json({"line": line})
        else:
            click.echo(text, nl=False)
        return bool(answer.content)

    def end(self) -> None:
        """Print what follows the last end of a line."""
        if self._begun:
            print_json({"line": self._begun})
