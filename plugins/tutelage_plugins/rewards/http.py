"""Scores by a service that is asked over HTTP."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

import tutelage

LONGEST_ANSWER = 64 * 2**20
"Bytes of a response that are read at most."

_AGAIN = {408, 429, 500, 502, 503, 504}
"Statuses after which it makes sense to ask again (RFC 9110, section 15)."


class _Rewards(msgspec.Struct):
    rewards: list[float]


class Http(tutelage.Reward):
    """Scores by a service: it is sent JSON and answers with JSON, a number for each answer.

    It is sent `{"prompts": [...], "answers": [...], "references": [...], "fields": [...]}` (a prompt is text or a list
    of messages; references are the rows' own answers), and returns `{"rewards": [...]}`. Redirects are not followed.
    """

    name = "http"

    class Config(tutelage.Config):
        """Where the service is, and how patient we are with it."""

        url: Annotated[str, Meta(description="Where to POST to, with http:// or https://.")]
        token_from: Annotated[
            str, Meta(description="The environment variable that holds a bearer token; none where empty.")
        ] = ""
        seconds: Annotated[float, Meta(gt=0, le=3600, description="How long to wait for a response.")] = 60.0
        retries: Annotated[
            int, Meta(ge=0, le=100, description="How often to ask again when it is busy or can't be reached.")
        ] = 4
        pause: Annotated[
            float, Meta(ge=0, le=600, description="Seconds before asking again; twice as many each further time.")
        ] = 1.0
        batch_size: Annotated[int, Meta(ge=1, le=100_000, description="Answers in one request.")] = 64

        def __post_init__(self) -> None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"url {self.url!r} is not an address that begins with http:// or https://")
            if parts.username or parts.password:
                raise ValueError(
                    "url holds a password; put it into an environment variable, and name that (token_from)"
                )

    def missing(self) -> str:
        name = self.config.token_from
        return f"the environment variable {name} is not set" if name and not os.environ.get(name) else ""

    def score(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(answers), self.config.batch_size):
            part = slice(start, start + self.config.batch_size)
            scores += self._ask(prompts[part], answers[part])
        return scores

    def _ask(self, prompts: Sequence[tutelage.Prompted], answers: Sequence[str]) -> list[float]:
        body = {
            "prompts": [each.prompt for each in prompts],
            "answers": list(answers),
            "references": [each.answer for each in prompts],
            "fields": [each.fields for each in prompts],
        }
        response = self._post(msgspec.json.encode(body, enc_hook=str))
        try:
            rewards = msgspec.json.decode(response, type=_Rewards).rewards
        except msgspec.MsgspecError as error:
            self._fail(f'did not answer with {{"rewards": [numbers]}}: {error}')
        if len(rewards) != len(answers):
            self._fail(f"gave {len(rewards)} rewards for {len(answers)} answers")
        return rewards

    def _post(self, body: bytes) -> bytes:
        """The body of a response of status 200."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.config.token_from:
            headers["Authorization"] = f"Bearer {os.environ[self.config.token_from]}"
        request = urllib.request.Request(self.config.url, body, headers, method="POST")  # noqa: S310 - of the two kinds that the config takes
        for attempt in range(self.config.retries + 1):
            try:
                with _OPENER.open(request, timeout=self.config.seconds) as response:
                    read: bytes = response.read(LONGEST_ANSWER + 1)
                if len(read) <= LONGEST_ANSWER:
                    return read
                self._fail(f"answered with more than {LONGEST_ANSWER:,} bytes")
            except urllib.error.HTTPError as error:
                said = f"answered with status {error.code} {error.reason}"
                if error.code not in _AGAIN:
                    self._fail(said)
            except (OSError, http.client.HTTPException) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                said = f"can't be reached: {reason or type(error).__name__}"
            if attempt < self.config.retries:
                time.sleep(self.config.pause * 2**attempt)
        self._fail(f"{said} ({self.config.retries + 1} attempts)")

    def _fail(self, wrong: str) -> NoReturn:
        fix = "see to the service, then tutelage resume"
        raise tutelage.RunFailed.at("reward http", f"{self.config.url} {wrong}", fix)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect becomes an error: the recipe alone says who is asked."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
