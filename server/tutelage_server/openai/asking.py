"""From a chat that is asked for to a question that an answering process understands."""

from __future__ import annotations

import os
from typing import Any

from tutelage_server.openai.protocol import Ask
from tutelage_server.openai.schemas import CreateChat
from tutelage_server.problems import Refused, refused

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"What templates call the roles that messages may have."
MOST_STOPS = 4


def question_of(data: CreateChat, most_tokens: int, id: str) -> Ask:
    """What to ask.

    Raises:
        Refused: 400 for what can't be answered or honoured here.
    """
    _refuse_what_is_not_offered(data)
    count = data.n or 1
    first = data.seed if data.seed is not None else int.from_bytes(os.urandom(7), "big")
    limit = data.max_completion_tokens or data.max_tokens
    if limit is not None and limit > most_tokens:
        field = "max_completion_tokens" if data.max_completion_tokens else "max_tokens"
        raise refused(400, field, f"is {limit}, and an answer here has at most {most_tokens}", code="invalid_value")
    return Ask(
        id=id,
        messages=[_message(each, f"messages[{number}]") for number, each in enumerate(data.messages)],
        seeds=[(first + number) % 2**63 for number in range(count)],
        max_tokens=limit,
        most_tokens=most_tokens,
        temperature=1.0 if data.temperature is None else data.temperature,
        top_p=1.0 if data.top_p is None else data.top_p,
        stop=_stops(data.stop),
    )


def _refuse_what_is_not_offered(data: CreateChat) -> None:
    asked = {
        "logprobs": data.logprobs or data.top_logprobs,
        "tools": data.tools or data.functions,
        "response_format": (data.response_format or {}).get("type", "text") != "text",
        "frequency_penalty": data.frequency_penalty,
        "presence_penalty": data.presence_penalty,
        "logit_bias": data.logit_bias,
        "modalities": data.modalities not in (None, [], ["text"]),
        "audio": data.audio,
        "web_search_options": data.web_search_options is not None,
    }
    for field, wanted in asked.items():
        if wanted:
            raise refused(400, field, "is not offered by this server", "leave it out", code="unsupported_parameter")


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MOST_STOPS or not all(1 <= len(each) <= 1000 for each in stops):
        wrong = f"holds more than {MOST_STOPS} strings, or one that is empty or longer than 1000 characters"
        raise refused(400, "stop", wrong, code="invalid_value")
    return stops


def _message(message: dict[str, Any], place: str) -> dict[str, Any]:
    """A message with its text alone; nothing that it names is ever fetched."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise _invalid(f"{place}.role", f"is {str(role)[:40]!r}; known are {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call") or message.get("audio"):
        raise _invalid(place, "holds more than text, and this server answers text alone")
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}.content[{number}]") for number, part in enumerate(content))
    if not isinstance(content, str):
        raise _invalid(f"{place}.content", "is not text")
    return {"role": ROLES[role], "content": content}


def _part(part: Any, place: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise _invalid(place, f"is no text but {str(kind)[:40]!r}; this server answers text alone and fetches nothing")


def _invalid(place: str, wrong: str) -> Refused:
    return refused(400, place, wrong, code="invalid_value")
