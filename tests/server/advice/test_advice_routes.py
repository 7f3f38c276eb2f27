"""Advice, estimates, audits, reviews and what they rest on: the same answers as the advisor's own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from serving import client, make_key, make_settings, make_store

from tutelage.plugins import host
from tutelage.schema import recipe_schema
from tutelage_advisor.advice import Advice
from tutelage_advisor.advising import advise
from tutelage_advisor.audit import Options, audit
from tutelage_advisor.catalog import load
from tutelage_advisor.estimates import EstimateRequest, estimate, what_fits
from tutelage_advisor.estimates.recipes import estimate_recipe
from tutelage_server.advice import working


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("advice")
    settings = make_settings(tmp_path, limits={"requests_per_minute": 100_000})
    store = make_store(tmp_path)
    with client(settings, store) as http:
        yield http, store, settings


def plain(value):
    """A value as JSON has it."""
    return json.loads(msgspec.json.encode(value, enc_hook=str))


def rows(count=120, start=0):
    return "".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What is the capital of country number {number}, and why?"},
                    {
                        "role": "assistant",
                        "content": f"City {number * 7919 % 1000} is, for {number} reasons of history.",
                    },
                ]
            }
        )
        + "\n"
        for number in range(start, start + count)
    ).encode()


def upload(http, data, name="rows.jsonl"):
    body = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    file = http.post("/v1/files", json=body).json()
    if file["status"] != "processed":
        sent = http.patch(f"/v1/files/{file['id']}/content", content=data, headers={"upload-offset": "0"})
        assert sent.status_code == 204
    return file["id"]


SITUATIONS = [
    {"task": "sort tickets"},
    {
        "task": "answer as we do",
        "examples": 5000,
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "RTX 4090"},
        "traffic": {"requests_per_month": 10**6, "growth_per_month": 0.1},
        "preferences": {"goal": "style", "pairs": 900},
    },
    {"task": "speak for us", "weights_access": "api-only", "model": "gpt-4o", "budget_usd": 10.5},
]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_advice_is_the_advisors(server, situation):
    answer = server[0].post("/v1/advice", json=situation)
    assert answer.status_code == 200, answer.text
    assert answer.json() == plain(advise(situation))
    fewer = server[0].post("/v1/advice", json=situation, params={"draws": 50, "seed": 3})
    assert msgspec.json.decode(fewer.content, type=Advice) == advise(situation, draws=50, seed=3)


def test_what_is_wrong_is_said_as_on_the_command_line(server):
    wrong = {"task": "x", "base_capability": "mighty", "trafic": {}, "traffic": {"output_tokens": -1}}
    answer = server[0].post("/v1/advice", json=wrong)
    assert answer.status_code == 422
    problems = {each["place"]: each for each in answer.json()["problems"]}
    assert set(problems) == {"base_capability", "trafic", "traffic.output_tokens"}
    assert "weak, partial, strong" in problems["base_capability"]["fix"]
    assert "traffic" in problems["trafic"]["fix"]
    for body in (b"", b"[]", b"{", b"null", b"\xff", b'{"task": 1e999}'):
        assert server[0].post("/v1/advice", content=body).status_code in (400, 422)


@pytest.mark.parametrize(
    "model", ["/etc", "/etc/passwd", "..", ".", "~", "file:x", "http://127.0.0.1/", "a/../../b", "config.json"]
)
def test_a_model_is_never_looked_for_on_the_servers_disk(server, model, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.chdir(tmp_path)
    closed = {"task": "x", "model": model, "weights_access": "api-only"}
    for path, body in (("advice", {"task": "x", "model": model}), ("advice", closed), ("estimates", {"model": model})):
        answer = server[0].post(f"/v1/{path}", json=body)
        assert answer.status_code == 422
        assert answer.json()["problems"][0]["place"] == "model"
        assert "no model is called" in answer.json()["problems"][0]["wrong"]


def test_data_is_a_file_of_the_tenant(server, tmp_path):
    http, store, settings = server
    data = rows(700)
    (tmp_path / "data.jsonl").write_bytes(data)
    file_id = upload(http, data)
    answer = http.post("/v1/advice", json={"task": "x", "data": f"file:{file_id}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"]["measured"]
    assert answer.json()["data"]["examples"] == 700
    assert str(settings.folder) not in answer.text
    known = plain(advise({"task": "x", "data": str(tmp_path / "data.jsonl")}))
    assert answer.json()["data"] == known["data"]
    for strange in (str(tmp_path / "data.jsonl"), "hub:a/b", "file:file-0", "data.jsonl", f"file:{file_id}/../x"):
        assert http.post("/v1/advice", json={"task": "x", "data": strange}).status_code in (404, 422)
    with client(settings, store, make_key(store, "two")) as two:
        assert two.post("/v1/advice", json={"task": "x", "data": f"file:{file_id}"}).status_code == 404
    assert not list((settings.folder / "borrowed").iterdir())


def test_estimates_are_the_advisors(server):
    http = server[0]
    question = {"model": "llama-3.1-8b", "adapter": "qlora", "gpu": "RTX 4090", "examples": 5000, "seq_len": 2048}
    request = msgspec.convert(question, EstimateRequest)
    assert http.post("/v1/estimates", json=question).json() == plain(estimate(request))
    fits = http.post("/v1/estimates", json={**question, "what_fits": True})
    assert fits.json()["options"] == plain(what_fits(request, only="RTX 4090"))
    problems = http.post("/v1/estimates", json={**question, "adapter": "dora", "ranck": 3}).json()["problems"]
    assert {each["place"] for each in problems} == {"adapter", "ranck"}
    for body in ({}, [], {"model": 3}, {"recipe": []}, {"gpu": "T4"}):
        assert http.post("/v1/estimates", json=body).status_code == 422


def recipe(train):
    tune = {"name": "tune", "phase": "sft", "adapter": "lora", "data": {"train": train}, "trainer": {"max_length": 256}}
    return {"name": "x", "model": "starter:smollm2-135m-instruct", "stages": [tune]}


def test_a_recipe_is_estimated_with_its_data(server, tmp_path):
    http, _, settings = server
    data = rows(300)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_bytes(data)
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe("data/rows.jsonl"), "model": "smollm2-135m"}))
    hardware = {"gpu": "T4", "gpus": 1, "nodes": 1, "network_gb_s": 50.0}
    wanted = plain(estimate_recipe(tmp_path / "recipe.json", hardware, load(), []))
    asked = {**recipe(f"file:{upload(http, data)}"), "model": "huggingface/smollm2-135m"}
    answer = http.post("/v1/estimates", json={"recipe": asked, "gpu": "T4"})
    assert answer.status_code == 422  # the hub is an operator's choice
    asked["model"] = "starter:smollm2-135m-instruct"
    answer = http.post("/v1/estimates", json={"recipe": asked, "gpu": "T4"})
    if answer.status_code == 422:
        assert "starter" in answer.text, answer.text
        pytest.skip("the starter model is not here")
    found = answer.json()
    assert found["stages"]["tune"]["parts"].keys() == wanted["stages"]["tune"]["parts"].keys()
    assert found["hours"] == pytest.approx(wanted["hours"])
    assert not [path for path in (settings.folder / "jobs").iterdir() if path.name.startswith(".")]


def test_a_recipe_names_nothing_of_the_server(server, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(rows(10))
    for train in (str(tmp_path / "rows.jsonl"), "../../x", "/etc/passwd", "hub:a/b", "file:file-0"):
        answer = server[0].post("/v1/estimates", json={"recipe": recipe(train)})
        assert answer.status_code == 422
        assert "stages.tune.data.train" in answer.text


def test_an_audit_is_the_command_lines(server, tmp_path, monkeypatch):
    http = server[0]
    data = rows(200) + rows(20) + b'{"broken\n' + b'{"messages": [{"role": "user", "content": "a@b.example"}]}\n'
    (tmp_path / "data.jsonl").write_bytes(data)
    (tmp_path / "data1.jsonl").write_bytes(rows(5))
    monkeypatch.chdir(tmp_path)
    options = Options(held_out=Path("data1.jsonl"), settings={"too-long": {"max_length": 1024}}, limit=150)
    wanted = plain(audit("data.jsonl", options))
    file_id, held_out = upload(http, data), upload(http, rows(5), "eval.jsonl")
    answer = http.post("/v1/audits", json={"file": f"file:{file_id}", "eval": held_out, "limit": 150})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    for report in (found, wanted):
        del report["seconds"], report["data"]
    assert {each["check"]: each for each in found["findings"]} == {each["check"]: each for each in wanted["findings"]}
    assert found == wanted
    assert not found["whole"]
    assert http.post("/v1/audits", json={"file": file_id, "skip": ["nothing"]}).status_code == 422
    assert http.post("/v1/audits", json={"file": "file-0"}).status_code == 404
    assert http.post("/v1/audits", json={"file": upload(http, b"\0\1\2", "x.jsonl")}).status_code == 422


def test_an_audit_that_takes_too_long_is_ended(server, monkeypatch):
    monkeypatch.setattr(working, "SECONDS", 0.05)
    answer = server[0].post("/v1/audits", json={"file": upload(server[0], rows(50))})
    assert answer.status_code == 422
    assert answer.json()["code"] == "too_slow"
    assert "limit" in answer.text


def test_a_review_is_begun_decided_and_signed(server):
    http, store, settings = server
    file_id = upload(http, rows(30, start=5000))
    assert http.get(f"/v1/reviews/{file_id}").json() == {
        "signed": False,
        "problems": ["the file has no review: the file.review is not there"],
        "pending": [],
        "decided": 0,
        "signatures": [],
        "head": "",
    }
    begun = http.post("/v1/reviews", json={"file": file_id, "sample": 5})
    assert begun.status_code == 200, begun.text
    pending = begun.json()["pending"]
    assert len(pending) == 5
    assert pending[0]["turns"][0][0] == "user"
    assert http.post("/v1/reviews", json={"file": file_id, "sign": True}).status_code == 422
    good = {"accurate": True, "unbiased": True, "appropriate": True}
    decisions = [{"row": each["row"], **good} for each in pending]
    assert http.post("/v1/reviews", json={"file": file_id, "decisions": decisions[:4]}).json()["decided"] == 4
    signed = http.post("/v1/reviews", json={"file": file_id, "decisions": decisions[4:], "sign": True}).json()
    assert signed["signed"]
    assert signed["signatures"][0]["who"].startswith("test (key-")
    assert http.get(f"/v1/reviews/{file_id}").json()["head"] == signed["head"]
    with client(settings, store, make_key(store, "two")) as two:
        assert two.get(f"/v1/reviews/{file_id}").status_code == 404
        assert two.post("/v1/reviews", json={"file": file_id}).status_code == 404
    found = http.post("/v1/audits", json={"file": file_id}).json()
    assert found["readiness"]["quality"] == "reviewed"
    record = settings.folder / "reviews" / file_id / "data.jsonl.review"
    record.write_bytes(record.read_bytes().replace(b'"accurate":true', b'"accurate":null', 1))
    assert not http.get(f"/v1/reviews/{file_id}").json()["signed"]
    http.delete(f"/v1/files/{file_id}")
    assert not record.parent.exists()


def test_catalog_plugins_and_schema(server):
    http = server[0]
    for path, wanted in (("catalog", plain(load())), ("schema", plain(recipe_schema(host())))):
        answer = http.get(f"/v1/{path}")
        assert answer.json() == wanted
        assert http.get(f"/v1/{path}", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    shown = {each["name"]: each for each in http.get("/v1/plugins").json()["items"]}
    phases = {each["name"] for each in shown["builtin"]["provides"]["phase"]}
    assert "sft" in phases
    rewards = {each["name"]: each["allowed"] for each in shown["builtin"]["provides"]["reward"]}
    assert rewards["function"] is False
    assert rewards["length"] is True


def test_the_server_answers_without_torch(tmp_path):
    script = """
import sys, tempfile, tutelage_server.app
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from serving import client, make_settings
with client(make_settings(Path(sys.argv[1]))) as http:
    assert http.post("/v1/advice", json={"task": "x", "examples": 3000}).status_code == 200
    assert http.post("/v1/estimates", json={"model": "llama-3.1-8b", "gpu": "T4"}).status_code == 200
    for path in ("catalog", "plugins", "schema", "openapi.json"):
        assert http.get(f"/v1/{path}").status_code == 200, path
    found = [name for name in ("torch", "transformers", "peft", "lightning", "datasets") if name in sys.modules]
print(found)
"""
    support = str(Path(__file__).parents[2] / "support")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path), support], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_bodies_are_described(server):
    schema = server[0].get("/v1/openapi.json").json()
    body = schema["paths"]["/v1/advice"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]["required"] == ["task"]
    sent = schema["paths"]["/v1/files/{file_id}/content"]["patch"]["requestBody"]["content"]
    assert list(sent) == ["application/offset+octet-stream"]
