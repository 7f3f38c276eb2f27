"""What goes wrong, as an answer: RFC 9457 documents, and OpenAI's error bodies below `/openai`."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from typing import Any

from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException
from litestar.types import Scope
from litestar.utils import normalize_path

from tutelage.errors import Problem, TutelageError
from tutelage_server.jobs.states import NotAllowed
from tutelage_server.problems import TITLES, Refused, document
from tutelage_server.store.store import StoreUnavailable
from tutelage_server.store.tables import new_id

_log = logging.getLogger(__name__)

_RETRY_SECONDS = "2"
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_FIELD = re.compile(r"[a-z_]+(\[\d+\])?(\.[a-z_]+(\[\d+\])?)*")
"What a field of a body is called; other places are said in words."


def request_id(scope: Scope) -> str:
    """The id of a request, which its answer, its problems and the log carry."""
    made: str = scope["state"].setdefault("request_id", new_id("req"))
    return made


def answer_problem(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """The answer to a request that an exception ended. What is no one's to mend is logged and tells no internals."""
    refusal = _refusal(error)
    if refusal is None:
        _log.error("%s %s (%s) failed", request.method, request.url.path, request_id(request.scope), exc_info=error)
        wrong = "failed at this request"
        refusal = Refused(500, Problem(place="the server", wrong=wrong, fix="tell its operator the request's id"))
    if refusal.status == 405:
        refusal.headers = {**refusal.headers, "allow": allowed_methods(request.scope)}
    if request.url.path.startswith("/openai/"):
        return _openai(refusal)
    made = document(refusal.status, refusal.problems, request_id(request.scope), refusal.code)
    return Response(
        made, status_code=refusal.status, media_type="application/problem+json", headers=refusal.headers or None
    )


def allowed_methods(scope: Scope) -> str:
    """The methods that a request's address has, as the header Allow names them."""
    found: list[str] = []
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        with contextlib.suppress(HTTPException):
            scope["litestar_app"].asgi_router.handle_routing(path=normalize_path(scope["path"]), method=method)
            found.append(method)
    return ", ".join(found)


def status_of(error: Exception) -> int:
    """The status with which an exception is answered."""
    refusal = _refusal(error)
    return refusal.status if refusal else 500


def _refusal(error: Exception) -> Refused | None:
    """What an exception says to a caller; None when it is the server's own failure."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, StoreUnavailable):
        return Refused(503, error.problems, code="store_unavailable", headers={"retry-after": _RETRY_SECONDS})
    if isinstance(error, TutelageError):
        return Refused(422, error.problems)
    if isinstance(error, NotAllowed):
        problem = Problem(place=error.job, wrong=f"is {error.before} and can't become {error.after}")
        return Refused(409, problem, code="state_conflict")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = Problem(place="the server's disk", wrong="is full", fix="free some space, then try again")
        return Refused(503, problem, code="disk_full", headers={"retry-after": "30"})
    if isinstance(error, RecursionError):
        return Refused(400, Problem(place="the body", wrong="is nested too deeply", fix="make it flatter"))
    if isinstance(error, HTTPException) and error.status_code < 500:
        return _of_framework(error)
    return None


def _of_framework(error: HTTPException) -> Refused:
    """The framework's own refusals: unknown paths, malformed bodies, values of the wrong type."""
    status = error.status_code
    places = [each for each in error.extra or [] if isinstance(each, dict)] if isinstance(error.extra, list) else []
    if places and all(each.get("message") == "'data'" for each in places):  # the framework's word for no body at all
        return Refused(422, Problem(place="the body", wrong="is missing", fix="send a JSON document"), code="invalid")
    if places:
        problems = [Problem(place=_place(each), wrong=_sentence(str(each.get("message", "")))) for each in places]
        in_body = all(each.get("source") == "body" for each in places)
        return Refused(422 if in_body else status, problems, code="invalid")
    if status == 404:
        return Refused(404, Problem(place="the address", wrong="leads to nothing", fix="see /docs"))
    if status == 405:
        return Refused(405, Problem(place="the method", wrong="is not allowed at this address", fix="see /docs"))
    if status == 413:
        return Refused(413, Problem(place="the body", wrong="is larger than this address takes"), code="too_large")
    return Refused(status, Problem(place="the request", wrong=_sentence(error.detail)), headers=error.headers)


def _place(extra: dict[str, Any]) -> str:
    key, source = str(extra.get("key") or ""), extra.get("source") or ""
    source = str(getattr(source, "value", source))
    if source == "body":
        return key or "the body"
    return f"{source} {key}".strip() or "the request"


def _sentence(message: str) -> str:
    return message.replace("Expected", "expected").replace("`", "")


def _openai(refusal: Refused) -> Response[Any]:
    """OpenAI's body for an error; its client makes an exception of it, and tries again what it may."""
    first = refusal.problems[0] if refusal.problems else Problem(place="", wrong=TITLES.get(refusal.status, ""))
    status, kind = refusal.status, _OPENAI_TYPES.get(refusal.status, "invalid_request_error")
    code = {"invalid_key": "invalid_api_key", "invalid": "invalid_value"}.get(refusal.code, refusal.code) or None
    headers = dict(refusal.headers)
    if refusal.status == 422 and code == "invalid_value":
        status = 400
    elif refusal.status == 402:  # money is a quota to it; the same request would be refused again
        status, kind = 429, "insufficient_quota"
        headers.setdefault("x-should-retry", "false")
    elif refusal.status == 409:
        headers.setdefault("x-should-retry", "false")
    elif refusal.status >= 500:
        kind = "server_error"
    param = first.place if status in (400, 404, 422) and _FIELD.fullmatch(first.place) else None
    message = "\n".join(str(problem) for problem in refusal.problems)
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers or None)
