"""Health, metrics, and what the server says of itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import client, make_key, make_settings, make_store
from sqlalchemy import select

from tutelage_server.store.store import Store
from tutelage_server.store.tables import Job, Key, new_id


def test_health_is_open_and_asks_no_store(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    with client(make_settings(tmp_path), store) as http:
        http.headers.pop("authorization")
        for path in ("/healthz", "/v1/healthz", "/readyz", "/v1/readyz"):
            assert http.get(path).json()["status"] == "ok"


def test_a_server_whose_database_is_gone_lives_but_is_not_ready(tmp_path):
    store = make_store(tmp_path)
    gone = Store("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with client(make_settings(tmp_path), store) as http:
        store.engine, store._sessions = gone.engine, gone._sessions
        assert http.get("/healthz", headers={"authorization": ""}).status_code == 200
        answer = http.get("/readyz", headers={"authorization": ""})
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"]
        assert http.get("/v1/me").status_code == 503


@pytest.fixture
def operated(tmp_path):
    """A client with a key of the operator, its store and the key's row."""
    store = make_store(tmp_path)
    settings = make_settings(tmp_path)
    with client(settings, store, make_key(store, settings.operator)) as http:
        with store.reading() as session:
            key = session.scalars(select(Key)).one()
        yield http, store, key


def figures(http):
    families = text_string_to_metric_families(http.get("/v1/metrics").text)
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples
    }


def test_metrics_count_requests_and_jobs(operated):
    http, store, key = operated
    with store.writing() as session:
        for state in ("queued", "queued", "running", "failed"):
            session.add(
                Job(
                    id=new_id("job"),
                    tenant_id=key.tenant_id,
                    key_id=key.id,
                    name="x",
                    state=state,
                    recipe={},
                    launcher="local",
                )
            )
    for _ in range(3):
        http.get("/v1/me")
    http.get("/v1/me", headers={"authorization": ""})
    http.get("/v1/keys/one-of-many")
    found = figures(http)

    def requests(method, path, status):
        return found.get(("tutelage_requests_total", (("method", method), ("path", path), ("status", status))))

    assert requests("GET", "/v1/me", "200") == 3
    assert requests("GET", "/v1/me", "401") == 1
    assert requests("GET", "/v1/keys/{key_id}", "404") == 1
    assert found["tutelage_request_seconds_count", (("method", "GET"), ("path", "/v1/me"))] == 4
    states = {dict(labels)["state"]: value for (name, labels), value in found.items() if name == "tutelage_jobs"}
    assert {state: value for state, value in states.items() if value} == {"queued": 2, "running": 1, "failed": 1}
    assert states["paused"] == 0
    assert found["tutelage_jobs_active", ()] == 3
    assert found["tutelage_queue_oldest_seconds", ()] > 0
    assert "one-of-many" not in str(found)


def test_metrics_are_for_the_operator_alone(operated):
    http, store, _ = operated
    other = {"authorization": f"Bearer {make_key(store, 'two')}"}
    assert http.get("/v1/metrics", headers=other).status_code == 403


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The OpenAPI document and the page."""
    with client(make_settings(tmp_path_factory.mktemp("described"))) as http:
        http.headers.pop("authorization")
        yield http.get("/v1/openapi.json").json(), http.get("/docs"), http.app


def operations(document):
    return [
        (method, path, each)
        for path, item in document["paths"].items()
        for method, each in item.items()
        if isinstance(each, dict)
    ]


def test_the_document_is_openapi_3_1_and_names_every_route(described):
    document, _, app = described
    assert document["openapi"].startswith("3.1")
    paths = {
        route.path_format
        for route in app.routes
        if not route.path.startswith("/docs") and "openapi.json" not in route.path
    }
    assert set(document["paths"]) == paths
    ids = [each["operationId"] for *_, each in operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_reference_of_the_document_leads_somewhere(described):
    document = described[0]
    references = set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', __import__("json").dumps(document)))
    assert references
    assert references <= set(document["components"]["schemas"])


def test_every_operation_is_told_of(described):
    for method, path, each in operations(described[0]):
        assert each.get("description"), (method, path)
        assert each.get("tags"), (method, path)
        kind = "application/json" if path.startswith("/openai/") else "application/problem+json"
        assert kind in each["responses"]["503"]["content"], (method, path)


class Page(HTMLParser):
    """What a page loads, and where it leads."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.links, self.ids, self.text = set(), [], [], set(), text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.loads += [found[name] for name in ("src", "action", "data") if name in found]
        if tag == "link":
            self.loads.append(found.get("href"))
        elif "href" in found:
            self.links.append(found["href"])
        if "id" in found:
            self.ids.add(found["id"])


def test_the_page_needs_no_other_server_and_no_script(described):
    document, answer, _ = described
    page = Page(answer.text)
    assert answer.headers["content-type"].startswith("text/html")
    assert not page.loads
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|//[a-z]+\.", answer.text)
    assert all(link.startswith(("#", "/")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    for path in document["paths"]:
        assert path in answer.text


def test_a_postgres_that_goes_and_comes_back_makes_503_meanwhile(tmp_path, postgres_cluster):
    url = postgres_cluster.create()
    store = make_store(tmp_path, url)
    with client(make_settings(tmp_path, database=url), store) as http:
        assert http.post("/v1/keys", json={"name": "before", "scopes": ["read"]}).status_code == 201
        postgres_cluster.stop("immediate")
        try:
            for answer in (http.get("/v1/keys"), http.post("/v1/keys", json={"name": "lost", "scopes": ["read"]})):
                assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
                assert answer.headers["retry-after"]
            assert http.get("/healthz").status_code == 200
        finally:
            postgres_cluster.start()
        assert [each["name"] for each in http.get("/v1/keys").json()["items"]] == ["before", "test"]
    store.close()
