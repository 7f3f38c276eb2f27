"""The log of a job: all that its attempts wrote, as text."""

from __future__ import annotations

import codecs
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tutelage_server.client import Client

SECONDS_BETWEEN = 1.0


def print_log(client: Client, job_id: str) -> None:
    """The log up to now."""
    _Log(client, job_id).more()


def follow_log(client: Client, job_id: str) -> dict[str, Any]:
    """The log as it grows, through lost connections, until the job has ended or waits for people; the job then.

    Raises:
        ServerRefused, ConnectionLost
    """
    from tutelage_server.cli.following import RESTS
    from tutelage_server.client import segment

    log = _Log(client, job_id)
    while True:
        job: dict[str, Any] = client.get(f"/v1/jobs/{segment(job_id)}")
        grown = log.more()  # after the state was read: what an ended job wrote is there
        if job["state"] in RESTS:
            return job
        if not grown:
            time.sleep(SECONDS_BETWEEN)


class _Log:
    def __init__(self, client: Client, job_id: str) -> None:
        from tutelage_server.client import segment

        self._client = client
        self._place = f"/v1/jobs/{segment(job_id)}/log"
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def more(self) -> bool:
        """Print what came since the last time, and say whether that was anything."""
        answer = self._client.request("GET", self._place, params={"offset": self._offset}, headers={"accept": "*/*"})
        self._offset += len(answer.content)
        click.echo(self._decoder.decode(answer.content), nl=False)
        return bool(answer.content)
