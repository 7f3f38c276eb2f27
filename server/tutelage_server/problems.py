"""How a refusal looks over HTTP: RFC 9457 documents that carry the sentences and places of the command line."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tutelage.errors import Problem, TutelageError

TITLES = {
    400: "The request can't be understood",
    401: "No valid key",
    402: "Costs more than allowed",
    403: "Not allowed",
    404: "Not found",
    405: "The method is not allowed here",
    408: "Too slow",
    409: "Conflicts with what is there",
    412: "It has changed meanwhile",
    413: "Too large",
    415: "The media type is not supported",
    422: "Something is to be mended",
    429: "Too many requests",
    431: "Too large",
    500: "The server failed",
    503: "Not available now",
}


class Refused(TutelageError):
    """A request that is refused with an HTTP status; its problems are sentences for the caller."""

    def __init__(
        self,
        status: int,
        problems: Problem | Iterable[Problem],
        *,
        code: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(problems)
        self.status, self.code, self.headers = status, code, headers or {}


def refused(
    status: int, place: str, wrong: str, fix: str = "", *, code: str = "", headers: dict[str, str] | None = None
) -> Refused:
    """The common case of a single problem."""
    return Refused(status, Problem(place=place, wrong=wrong, fix=fix), code=code, headers=headers)


class ProblemDocument(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An RFC 9457 problem document (`application/problem+json`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    "All problems as text, a line each."
    instance: str = ""
    "The request's id, which the server's log has too."
    code: str = ""
    "What a program can tell apart, such as `over_budget`."
    problems: list[Problem] = []


def document(status: int, problems: list[Problem], instance: str = "", code: str = "") -> ProblemDocument:
    """The document of a refusal."""
    title = TITLES.get(status, "Refused")
    detail = "\n".join(str(problem) for problem in problems)
    return ProblemDocument(title=title, status=status, detail=detail, instance=instance, code=code, problems=problems)
