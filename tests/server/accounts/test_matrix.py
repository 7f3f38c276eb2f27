"""Every route, whatever will be added: without a key, with a key that lacks its scope, from another site, with a store
that is away, and asked by one tenant for what is another's.
"""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from pathlib import Path

import pytest
from serving import client, make_key, make_settings, make_store
from sqlalchemy import select

from tutelage_server.accounts.authentication import OPEN, UNSCOPED
from tutelage_server.accounts.caller import SCOPES
from tutelage_server.app import create_app
from tutelage_server.store.store import Store, StoreUnavailable
from tutelage_server.store.tables import Event, Job, Key, StoredFile, Tenant, new_id

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

NOTHING = {"/docs/{path:str}"}
"Open paths that lead to nothing, by the framework."


@functools.cache
def routes():
    """Every path and method of the application."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = make_settings(Path(folder))
        app = create_app(settings, Store(settings.database_url))
    found = [(route.path, method) for route in app.routes for method in sorted(route.methods)]
    return sorted(each for each in found if each[0] not in NOTHING)


def closed():
    return [each for each in routes() if plain(each[0]) not in OPEN]


def plain(path):
    """A path as `path_template` names it: `/v1/jobs/{job_id}`."""
    return "/".join(
        part.partition(":")[0] + "}" if part.startswith("{") and ":" in part else part for part in path.split("/")
    )


def names(path):
    return [part[1:-1].partition(":")[0] for part in path.split("/") if part.startswith("{")]


def filled(path, values):
    return "/".join(values[part[1:-1].partition(":")[0]] if part.startswith("{") else part for part in path.split("/"))


class Anything(dict):
    def __missing__(self, name):
        return "x"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A server with two tenants: `one`, which has things of every kind, and `two`, which has nothing."""
    tmp_path = tmp_path_factory.mktemp("world")
    settings = make_settings(tmp_path, limits={"requests_per_minute": 1_000_000})
    store = make_store(tmp_path)
    keys = {"one": make_key(store), "two": make_key(store, "two")}
    with store.writing() as session:
        tenant = session.scalars(select(Tenant).where(Tenant.name == "one")).one()
        key = session.scalars(select(Key).where(Key.tenant_id == tenant.id)).one()
        file = StoredFile(
            id=new_id("file"),
            tenant_id=tenant.id,
            name="rows.jsonl",
            bytes=3,
            received=3,
            status="processed",
            purpose="fine-tune",
        )
        common = {"tenant_id": tenant.id, "key_id": key.id, "recipe": {"name": "x"}, "launcher": "local", "events": 1}
        openai = {"prefix": "ft:smollm2:one:", "model": "smollm2", "training_file": file.id}
        jobs = {
            state: Job(id=new_id("job"), name=state, state=state, openai=openai, **common)
            for state in ("queued", "running", "waiting", "paused", "succeeded", "failed")
        }
        session.add_all([file, *jobs.values()])
        session.flush()
        session.add_all(Event(job_id=job.id, number=1, kind="state", data={"to": job.state}) for job in jobs.values())
    things = {
        "key_id": key.id,
        "file_id": file.id,
        "job_id": jobs["succeeded"].id,
        "path": "run.json",
        "model": f"ft:smollm2:one::{jobs['succeeded'].id[-12:]}",
        "jobs": {state: job.id for state, job in jobs.items()},
    }
    with client(settings, store, keys["one"]) as http:
        yield http, keys, things, settings, store


def call(http, method, path, key, **options):
    headers = {"authorization": f"Bearer {key}" if key else "", **options.pop("headers", {})}
    return http.request(method, path, headers=headers, **options)


@pytest.mark.parametrize(("path", "method"), closed())
def test_without_a_valid_key_a_route_answers_401(world, path, method):
    http, keys, *_ = world
    for value in ("", "Basic abc", "Bearer", "Bearer tut_0011223344556677_x", f"Bearer {keys['one'][:-1]}", "Bearer é"):
        headers = {"authorization": value.encode("latin-1")}
        answer = http.request(method, filled(path, Anything()), headers=headers, content=b"{}")
        assert answer.status_code == 401, value
        assert answer.headers["www-authenticate"] == "Bearer"
        check_refusal(path, method, answer)


def check_refusal(path, method, answer):
    """A refusal has the shape that its callers read."""
    if method == "HEAD":
        return
    if path.startswith("/openai/"):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
        assert answer.json()["instance"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(("path", "method"), closed())
def test_no_other_method_gets_past_the_key(world, path, method):
    http = world[0]
    there = {each for where, each in routes() if where == path}
    for other in set(METHODS) - there:
        assert http.request(other, filled(path, Anything()), headers={"authorization": ""}).status_code in (
            401,
            404,
            405,
        )


@pytest.mark.parametrize(("path", "method"), [each for each in closed() if each[1] != "OPTIONS"])
def test_a_key_without_the_scope_is_refused(world, path, method):
    http, _, _, _, store = world
    if path in UNSCOPED:
        assert call(http, method, path, scoped(store, ())).status_code == 200
        return
    answer = call(http, method, filled(path, Anything()), scoped(store, ()), content=b"{}")
    assert answer.status_code == 403
    check_refusal(path, method, answer)
    others = [each for each in SCOPES if f"the scope {each} " not in answer.text]
    if method != "HEAD":
        assert len(others) == len(SCOPES) - 1
        assert (
            call(http, method, filled(path, Anything()), scoped(store, tuple(others)), content=b"{}").status_code == 403
        )


@functools.cache
def scoped(store, scopes):
    return make_key(store, scopes=scopes)


FOREIGN = [
    {"host": "evil.example"},
    {"host": "evil.example:8790"},
    {"host": "127.0.0.1.evil.example"},
    {"host": "localhost.evil.example"},
    {"host": "evil.example#127.0.0.1"},
    {"host": "203.0.113.7"},
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"origin": "http://127.0.0.1:3000"},
    {"origin": "null"},
    {"origin": "file://"},
]


@pytest.mark.parametrize(("path", "method"), routes())
def test_another_sites_host_or_origin_is_refused(world, path, method):
    http, keys, *_ = world
    for headers in FOREIGN:
        answer = call(http, method, filled(path, Anything()), keys["one"], headers=headers, content=b"{}")
        assert answer.status_code in (400, 403), headers
        assert "key-" not in answer.text


@pytest.mark.parametrize(("path", "method"), [each for each in routes() if each[1] != "OPTIONS"])
def test_a_store_that_is_away_makes_503_or_no_difference(world, path, method, monkeypatch):
    http, keys, things, _, store = world
    assert call(http, "GET", "/v1/me", keys["one"]).status_code == 200  # the key is known

    def away(*_, **__):
        raise StoreUnavailable.at("the database", "can't be used now: it is away", "try again in a moment")

    for name in ("reading", "writing", "deciding"):
        monkeypatch.setattr(store, name, away)
    answer = call(
        http,
        method,
        filled(path, {**Anything(), **things_of(things, path)}),
        keys["one"],
        **body_for(path, method, things),
    )
    if answer.status_code >= 500:
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "away" in answer.text or method == "HEAD"
    if plain(path) in SHOWS and (method == "GET" or plain(path) in BODIES):
        assert answer.status_code == 503


SHOWS = {"/v1/me", "/v1/keys", "/v1/keys/{key_id}", "/v1/usage", "/v1/audit-log", "/v1/readyz", "/readyz", "/v1/files",
         "/v1/files/{file_id}", "/v1/jobs", "/v1/jobs/{job_id}"}  # fmt: skip
"Paths that can't be answered without the store."


def things_of(things, path):
    return {name: str(things.get(name, "x")) for name in names(path)}


BODIES = {
    "/v1/keys": {"json": {"name": "x", "scopes": ["read"]}},
    "/v1/jobs/{job_id}/rankings": {"json": {"person": "ann", "question": "x", "order": "a b"}},
}
"Bodies that POST routes need before they ask the store."


def body_for(path, method, things):
    if method not in ("POST", "PUT", "PATCH"):
        return {"params": {"person": "ann"}} if plain(path) == "/v1/jobs/{job_id}/rankings" else {}
    return BODIES.get(plain(path), {"content": b""} if names(path) else {"content": b"{}"})


OWNED = {"key_id", "file_id", "job_id", "model"}
"Path parameters that name a tenant's own things."
HARMLESS = {"path", "name"}
"Path parameters that only mean something below another."


@pytest.mark.parametrize(("path", "method"), [each for each in closed() if names(each[0]) and each[1] != "OPTIONS"])
def test_what_is_another_tenants_is_not_there(world, path, method):
    http, keys, things, *_ = world
    unknown = set(names(path)) - OWNED - HARMLESS
    assert not unknown, f"tell this test what {unknown} is"
    if not set(names(path)) & OWNED:
        pytest.skip("names nothing that a tenant owns")
    for job_id in things["jobs"].values() if "job_id" in names(path) else [things["job_id"]]:
        address = filled(path, {**things_of(things, path), "job_id": job_id})
        answer = call(http, method, address, keys["two"], **body_for(path, method, things))
        assert answer.status_code == 404, answer.text
        check_refusal(path, method, answer)
        strange = address
        for name in OWNED & set(names(path)):
            strange = strange.replace(str(things[name]) if name != "job_id" else job_id, f"{name[:3]}-{'0' * 32}")
        none = call(http, method, strange, keys["two"], **body_for(path, method, things))
        assert none.status_code == 404
        if method == "GET" and not path.startswith("/openai/"):  # there and not there look alike
            assert none.json()["title"] == answer.json()["title"]
            assert none.json()["problems"][0]["wrong"].count(" ") == answer.json()["problems"][0]["wrong"].count(" ")


@pytest.mark.parametrize("path", [path for path, method in closed() if method == "GET" and not names(path)])
def test_lists_show_nothing_of_another_tenant(world, path):
    http, keys, things, *_ = world
    if path == "/v1/audit-log":
        assert {each["key_id"] for each in call(http, "GET", path, keys["two"]).json()["items"]} <= {
            two_key(http, keys)
        }
        return
    answer = call(http, "GET", path, keys["two"], params={"jobs": things["job_id"]} if path == "/v1/compare" else None)
    for thing in (things["key_id"], things["file_id"], *things["jobs"].values()):
        if path == "/v1/compare":
            assert answer.status_code in (404, 422)
        else:
            assert thing not in answer.text


def two_key(http, keys):
    return call(http, "GET", "/v1/me", keys["two"]).json()["key_id"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/keys/{key_id}",
        "/v1/files/{file_id}",
        "/openai/v1/files/{file_id}",
        "/openai/v1/models/{model}",
        "/v1/jobs/{job_id}",
    ],
)
def test_the_owner_sees_them(world, path):
    """Otherwise the tests above would pass on a server that shows nothing to anyone."""
    http, keys, things, *_ = world
    if path not in {plain(each) for each, _ in routes()}:
        pytest.skip("not built")
    answer = call(http, "GET", filled(path, things_of(things, path)), keys["one"])
    assert answer.status_code == 200, answer.text


INSIDE = [
    ("POST", "/v1/audits", lambda things: {"file": things["file_id"]}),
    ("POST", "/v1/jobs", lambda things: {"recipe": recipe(f"file:{things['file_id']}")}),
    ("POST", "/v1/jobs", lambda things: {"recipe": recipe("rows.jsonl", model=f"job:{things['job_id']}")}),
    ("POST", "/v1/jobs", lambda things: {"recipe": recipe("rows.jsonl"), "after": [things["job_id"]]}),
    (
        "POST",
        "/openai/v1/fine_tuning/jobs",
        lambda things: {"model": "smollm2-135m-instruct", "training_file": things["file_id"]},
    ),
    (
        "POST",
        "/openai/v1/chat/completions",
        lambda things: {"model": things["model"], "messages": [{"role": "user", "content": "x"}]},
    ),
]


def recipe(train, model="starter:smollm2-135m-instruct"):
    return {"name": "x", "model": model, "stages": [{"name": "tune", "phase": "sft", "data": {"train": train}}]}


@pytest.mark.parametrize(("method", "path", "body"), INSIDE, ids=[f"{n} {each[1]}" for n, each in enumerate(INSIDE)])
def test_what_a_body_names_is_looked_for_among_the_tenants_own(world, method, path, body):
    http, keys, things, _, store = world
    if (path, method) not in routes():
        pytest.skip("not built")
    answer = call(http, method, path, keys["two"], json=body(things))
    assert 400 <= answer.status_code < 500, answer.text
    wanted = json.dumps(body(things))
    shown = next(thing for thing in (things["file_id"], things["job_id"], things["model"]) if thing in wanted)
    assert shown in answer.text or answer.status_code == 404, "the refusal is about something else"
    with store.reading() as session:
        two = session.scalars(select(Tenant).where(Tenant.name == "two")).one()
        assert session.scalars(select(Job).where(Job.tenant_id == two.id)).all() == []
