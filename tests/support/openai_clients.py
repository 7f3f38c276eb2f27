"""The unmodified OpenAI client, on an application in this process or on a served one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pytest


def openai_client(http: Any, *, retries: int = 0, key: str | None = None) -> openai.OpenAI:
    """A client that sends through `http`: a test client of an application, or any other of httpx."""
    key = key or str(http.headers["authorization"]).removeprefix("Bearer ")
    base = str(http.base_url).rstrip("/")
    return openai.OpenAI(base_url=f"{base}/openai/v1", api_key=key, http_client=http, max_retries=retries)


def chat_lines(count: int = 12) -> bytes:
    """A file of supervised examples."""
    return jsonl(
        {
            "messages": [
                {"role": "user", "content": f"what is {number} + 1?"},
                {"role": "assistant", "content": f"it is {number + 1}"},
            ]
        }
        for number in range(count)
    )


def preference_lines(count: int = 12) -> bytes:
    """A file of preference examples."""
    return jsonl(
        {
            "input": {"messages": [{"role": "user", "content": f"what is {number} + 1?"}]},
            "preferred_output": [{"role": "assistant", "content": f"it is {number + 1}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"{number} and one"}],
        }
        for number in range(count)
    )


def jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def lose_replies(http: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, the connection is lost so many times after the server has answered a POST."""
    send, left = http.send, [count]

    def lossy(request: Any, **options: Any) -> Any:
        response = send(request, **options)
        if left[0] and request.method == "POST":
            left[0] -= 1
            raise httpx.ReadError("the connection was lost")
        return response

    monkeypatch.setattr(http, "send", lossy)


@pytest.fixture
def no_sleep(monkeypatch):
    """The client's pauses between tries are left out."""
    monkeypatch.setattr(openai.OpenAI, "_sleep_for_retry", lambda self, **_: None)
