"""What the server offers: an OpenAPI 3.1 document, and a page that shows it without scripts or other servers."""

from __future__ import annotations

import copy
import html
import json
from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme, Tag

from tutelage import __version__
from tutelage_server.problems import TITLES, ProblemDocument

CREATING = ("/v1/jobs", "/v1/jobs/{job_id}/retry", "/v1/files", "/v1/keys", "/openai/v1/files")
"Paths whose POST takes an Idempotency-Key, with those that begin as the jobs of OpenAI."

_REFUSALS = (400, 401, 403, 404, 409, 413, 422, 429, 500, 503)


def openapi_config() -> OpenAPIConfig:
    """How the framework describes the routes; the page lies at `/docs`."""
    return OpenAPIConfig(
        title="Tutelage",
        version=__version__,
        description="Advice on how a language model should learn, and jobs that teach it.",
        path="/docs",
        render_plugins=[_Page(path="/")],
        use_handler_docstrings=True,
        components=Components(
            security_schemes={"key": SecurityScheme(type="http", scheme="bearer", description="`tut_…`")}
        ),
        security=[{"key": []}],
        tags=[Tag(name="accounts", description="Keys, usage, the audit log."), Tag(name="operations")],
    )


def describe(app: Litestar) -> bytes:
    """The document as JSON, made once for an application."""
    made: bytes | None = app.state.get("description")
    if made is None:
        schema = finished(app.openapi_schema.to_schema())
        _add_bodies(schema, app)
        made = msgspec.json.encode(schema)
        app.state["description"] = made
    return made


def _add_bodies(schema: dict[str, Any], app: Litestar) -> None:
    """The bodies of handlers that read them themselves, to say every problem at once: `opt={"body": (Struct, …)}`, or
    a media type for bytes."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", []):
            if not (body := handler.opt.get("body")):
                continue
            if isinstance(body, str):
                content: dict[str, Any] = {body: {"schema": {"type": "string", "format": "binary"}}}
            else:
                shapes, components = msgspec.json.schema_components(body, ref_template="#/components/schemas/{name}")
                schema["components"]["schemas"].update(components)
                content = {"application/json": {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": list(shapes)}}}
            for method in handler.http_methods:
                operation = schema["paths"][route.path_format][method.lower()]
                operation["requestBody"] = {"required": True, "content": content}


def finished(schema: dict[str, Any]) -> dict[str, Any]:
    """The framework's document with what it can't know: refusals as they are, open paths, headers that may be sent."""
    from tutelage_advisor.catalog.entries import Figure
    from tutelage_server.accounts.authentication import OPEN

    schema = copy.deepcopy(schema)
    shapes = [ProblemDocument, Figure]  # the framework takes a figure, which is written as a list, for an object
    _, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    known = schema.setdefault("components", {}).setdefault("schemas", {})
    known.update(components)
    known["OpenAIError"] = _OPENAI_ERROR
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            if not isinstance(operation, dict):
                continue
            _add_refusals(operation, path, path in OPEN)
            if path in OPEN:
                operation["security"] = []
            if method == "post" and (path in CREATING or path.startswith("/openai/v1/fine_tuning/jobs")):
                operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    return schema


def _add_refusals(operation: dict[str, Any], path: str, is_open: bool) -> None:
    openai = path.startswith("/openai/")
    kind = "application/json" if openai else "application/problem+json"
    shape = {"$ref": f"#/components/schemas/{'OpenAIError' if openai else 'ProblemDocument'}"}
    responses = operation.setdefault("responses", {})
    for status in _REFUSALS:
        if is_open and status in (401, 403, 404, 409, 413, 422, 429):
            continue
        responses[str(status)] = {"description": TITLES[status], "content": {kind: {"schema": shape}}}
    responses.setdefault("408", {"description": "The body came too slowly", "content": {kind: {"schema": shape}}})
    responses.setdefault("415", {"description": TITLES[415], "content": {kind: {"schema": shape}}})
    responses.setdefault("402", {"description": TITLES[402], "content": {kind: {"schema": shape}}})


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A word of your own for this request: sent again with it, it is answered as the first time.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"},
}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


class _Page(OpenAPIRenderPlugin):
    """The document as a page of plain HTML."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page."""
        return page(json.loads(describe(request.app))).encode()


def page(schema: dict[str, Any]) -> str:
    """The document as one page of HTML, whole in itself."""
    groups: dict[str, list[str]] = {}
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict):
                tag = (operation.get("tags") or ["other"])[0]
                groups.setdefault(tag, []).append(_operation(method, path, operation))
    links = " ".join(f'<a href="#{html.escape(tag)}">{html.escape(tag)}</a>' for tag in groups)
    parts = [f'<h2 id="{html.escape(tag)}">{html.escape(tag)}</h2>{"".join(each)}' for tag, each in groups.items()]
    shapes = "".join(
        f'<details id="shape-{html.escape(name)}"><summary>{html.escape(name)}</summary>{_shape(each)}</details>'
        for name, each in sorted(schema["components"]["schemas"].items())
    )
    info = schema["info"]
    return _HTML.format(
        title=html.escape(f"{info['title']} {info['version']}"),
        about=html.escape(info.get("description") or ""),
        links=f'{links} <a href="#shapes">shapes</a> <a href="/v1/openapi.json">OpenAPI</a>',
        body="".join(parts) + f'<h2 id="shapes">shapes</h2>{shapes}',
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(each['name'])}</code></td><td>{html.escape(each['in'])}</td>"
        f"<td>{_kind(each.get('schema', {}))}</td><td>{html.escape(each.get('description') or '')}</td></tr>"
        for each in operation.get("parameters", [])
    )
    body = "".join(
        f"<p>body ({html.escape(media)}): {_kind(each.get('schema', {}))}</p>"
        for media, each in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        f"<p>{status}: {html.escape(each.get('description') or '')} {_content(each)}</p>"
        for status, each in sorted(operation.get("responses", {}).items())
        if status.startswith("2")
    )
    text = html.escape(operation.get("description") or operation.get("summary") or "")
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> {text.partition(chr(10))[0]}"
        f"</summary><p>{text}</p>{f'<table>{rows}</table>' if rows else ''}{body}{answers}</details>"
    )


def _content(response: dict[str, Any]) -> str:
    return ", ".join(_kind(each.get("schema", {})) for each in response.get("content", {}).values())


def _shape(shape: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code>{'' if name in shape.get('required', []) else '?'}</td>"
        f"<td>{_kind(each)}</td><td>{html.escape(each.get('description') or '')}</td></tr>"
        for name, each in shape.get("properties", {}).items()
    )
    return f"<p>{html.escape(shape.get('description') or '')}</p>{f'<table>{rows}</table>' if rows else ''}"


def _kind(shape: dict[str, Any]) -> str:
    if "$ref" in shape:
        name = html.escape(shape["$ref"].rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    for several in ("oneOf", "anyOf", "allOf"):
        if several in shape:
            return " | ".join(_kind(each) for each in shape[several])
    if "enum" in shape:
        return html.escape(" | ".join(str(each) for each in shape["enum"]))
    kind = shape.get("type", "any")
    if kind == "array":
        return f"list of {_kind(shape.get('items', {}))}"
    return html.escape(" | ".join(kind) if isinstance(kind, list) else str(kind))


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
details {{ border-bottom: 1px solid #8884; padding: .4rem 0; }} summary {{ cursor: pointer; }}
table {{ border-collapse: collapse; }} td {{ padding: .1rem .8rem .1rem 0; vertical-align: top; }}
code {{ font-family: ui-monospace, monospace; }} nav a {{ margin-right: 1rem; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #ddd; }} a {{ color: #8bf; }} }}
</style></head><body><h1>{title}</h1><p>{about}</p>
<p>Every address but the health checks and this page needs the header <code>Authorization: Bearer tut_…</code>.</p>
<nav>{links}</nav>{body}</body></html>
"""
