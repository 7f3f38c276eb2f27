"""Answers of an HTTP server that misbehaves on demand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


def says(body: Any, status: int = 200, **headers: str) -> Answer:
    """An answer."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    return answer


def breaks_off(body: bytes = b"", promised: int | None = None, status: int = 200, **headers: str) -> Answer:
    """An answer whose connection ends before it does; without a body, before it begins."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            if body or promised is not None:
                handler.send_response(status)
                for name, value in headers.items():
                    handler.send_header(name.replace("_", "-"), value)
                handler.send_header("content-length", str(promised if promised is not None else len(body) + 1))
                handler.end_headers()
                handler.wfile.write(body)
                handler.wfile.flush()
            handler.connection.shutdown(2)
        handler.close_connection = True

    return answer
