"""A job reads what its tenant may read, and nothing else, whatever a recipe says."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from job_service import TEXT, JobService, problems_of, recipe, record
from serving import make_key

from tutelage.config import read_file


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with JobService(tmp_path_factory.mktemp("confined"), limits={"requests_per_minute": 1_000_000}) as made:
        yield made


OUTSIDE = [
    "/etc/passwd",
    "../../secrets.json",
    "..",
    ".",
    "~/.ssh/id_rsa",
    "%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e/x",
    "..\\..\\x",
    "C:\\windows",
    "data/../../x",
    "run:secret",
    "run/stages/x",
    "file:///etc/passwd",
    "file:../x",
    "file:",
    "job:../x",
    "job:x/../../y",
    "stage:../x",
    "starter:../../x",
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/x.jsonl",
    "s3://bucket/x",
    "hub:owner/name",
    "owner/name",
    "$(touch x)",
    "a;b",
    "x\ny",
    "\u2024\u2024/x",
    "/v1/../x",
]
PLACES = {
    "model": ("model",),
    "stages.learn.data.train": ("stages", 0, "data", "train"),
    "stages.learn.data.eval": ("stages", 0, "data", "eval"),
    "stages.learn.model": ("stages", 0, "model"),
    "tokenizer.chat_template": ("tokenizer", "chat_template"),
    "stages.learn.phase.tokenizer": ("stages", 0, "phase", "tokenizer"),
}


def put(data, path, value):
    *parents, last = path
    for step in parents:
        data = data[step]
    data[last] = value


@pytest.mark.parametrize("value", OUTSIDE)
def test_nothing_outside_may_be_named_anywhere(service, value):
    made = {**recipe("x"), "tokenizer": {}}
    made["stages"][0]["data"] = {}
    for path in PLACES.values():
        put(made, path, value)
    answer = service.submit(recipe=made)
    assert answer.status_code == 422, answer.text
    assert {*PLACES} <= {*problems_of(answer)}


def test_no_folder_is_left_of_what_was_refused(service):
    service.submit(recipe=recipe("/etc/passwd"))
    jobs = service.settings.folder / "jobs"
    assert [path.name for path in jobs.glob(".*")] == []


def test_a_file_of_another_tenant_is_none(service):
    theirs = service.upload("secret", headers=service.other)
    wrong = problems_of(service.submit(recipe=recipe(theirs)))["stages.learn.data.train"]
    nothing = problems_of(service.submit(recipe=recipe("file:file-0")))["stages.learn.data.train"]
    assert wrong == nothing.replace("file-0", theirs.removeprefix("file:"))


def test_a_job_of_another_tenant_is_none(service):
    mine = service.job()
    theirs = {**recipe(service.upload(TEXT, headers=service.other)), "model": f"job:{mine}"}
    answer = service.submit(recipe=theirs, headers=service.other)
    assert "no job of yours" in problems_of(answer)["model"]


def test_files_get_their_own_names_in_the_jobs_folder_and_are_the_same_bytes(service):
    one, two = service.upload("one " * 9, "a b.txt"), service.upload("two " * 9, "a\u00e4b.txt")
    made = recipe("")
    made["stages"][0]["data"] = {"mix": [{"source": one}, {"source": two}]}
    job = service.job(recipe=made)
    written = read_file(service.folder(job) / "recipe.yaml")
    sources = [part["source"] for part in written["stages"][0]["data"]["mix"]]
    assert sources == ["data/a_b.txt", "data/2-a_b.txt"]
    assert [(service.folder(job) / each).read_text()[:3] for each in sources] == ["one", "two"]
    assert service.http.get(f"/v1/jobs/{job}").json()["recipe"] == made


def test_every_name_in_the_folders_recipe_is_in_the_folder(service):
    made = recipe(service.upload(TEXT))
    made["tokenizer"] = {"chat_template": service.upload("{{ 1 }}", ".hidden.jinja")}
    job = service.job(recipe=made)
    folder = service.folder(job)
    written = read_file(folder / "recipe.yaml")
    for name in (written["tokenizer"]["chat_template"], written["stages"][0]["data"]["train"]):
        assert (folder / name).resolve().is_relative_to(folder / "data")


def test_what_is_half_sent_can_not_be_used(service):
    half = service.http.post("/v1/files", json={"name": "x.txt", "bytes": 10}).json()["id"]
    assert "not all there" in problems_of(service.submit(recipe=recipe(f"file:{half}")))["stages.learn.data.train"]


def test_a_model_in_a_file_is_a_gguf_file_and_never_a_pickle(service):
    pickle = service.upload(b"\x80\x04canary", "pytorch_model.bin")
    assert "not a model" in problems_of(service.submit(recipe={**recipe("stage:x"), "model": pickle}))["model"]


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        ({"phase": {"kind": "grpo", "rewards": [{"kind": "function", "function": "os:system"}]}}, "rewards.0.kind"),
        ({"phase": {"kind": "grpo", "rewards": ["function"]}}, "rewards.0"),
        (
            {"phase": {"kind": "evaluation", "judge": [{"kind": "http", "url": "http://169.254.169.254"}]}},
            "judge.0.kind",
        ),
        ({"phase": {"kind": "ranking", "simulated": {"kind": "function", "function": "a:b"}}}, "simulated.kind"),
    ],
)
def test_denied_plugins_are_refused_wherever_they_hide(service, stage, place):
    made = recipe(service.upload(TEXT))
    made["stages"].append({"name": "more", **stage})
    assert "may not be used" in problems_of(service.submit(recipe=made))[f"stages.more.phase.{place}"]


def test_trackers_write_where_the_server_says(service):
    made = {**recipe(service.upload(TEXT)), "trackers": [{"kind": "tensorboard", "folder": "/tmp/x"}, "wandb"]}
    assert {*problems_of(service.submit(recipe=made))} == {"trackers.0.folder", "trackers.1.kind"}


def test_a_plugin_that_is_denied_is_so_by_default_too(tmp_path):
    with JobService(tmp_path, deny_plugins=["adapter:lora", "tracker:csv"]) as service:
        made = recipe(service.upload(TEXT))
        del made["stages"][0]["adapter"]
        made["stages"][0]["phase"] = "sft"
        assert {*problems_of(service.submit(recipe=made))} == {"stages.learn.adapter", "trackers"}


def test_the_hub_is_the_operators_choice(tmp_path):
    with JobService(tmp_path, allow_hub=True) as service:
        made = {**recipe("hub:owner/rows:train"), "model": "owner/name"}
        job = service.job(recipe=made)
        assert read_file(service.folder(job) / "recipe.yaml")["model"] == "owner/name"
        for value in ("../name", "data/x.bin", "run/stages", "owner/name/../x", "https://hub/owner/name"):
            assert "model" in problems_of(service.submit(recipe={**made, "model": value}))


def test_another_jobs_model_is_named_beside_and_waited_for(service):
    first = service.job()
    made = {**recipe(service.upload(TEXT)), "model": f"job:{first}"}
    second = service.job(recipe=made)
    assert service.row(second).after == [first]
    assert read_file(service.folder(second) / "recipe.yaml")["model"] == f"../{first}/run"
    assert service.checker.asked[-1]["model"] == "new"  # of the same shape as what the first will make


@pytest.mark.parametrize(("adapter", "folder"), [("full", "model"), ("lora", "adapter")])
def test_what_a_stage_of_another_job_will_make_is_named_as_the_run_will_call_it(service, adapter, folder):
    made = recipe(service.upload(TEXT))
    made["stages"][0]["adapter"] = adapter
    first = service.job(recipe=made)
    second = service.job(recipe={**recipe(service.upload(TEXT)), "model": f"job:{first}/learn"})
    assert service.row(second).after == [first]
    named = read_file(service.folder(second) / "recipe.yaml")["model"]
    assert named == f"../{first}/run/stages/learn/{folder}"


def test_data_that_another_job_made_is_named_by_its_file(service):
    first = service.job()
    asked = recipe(f"job:{first}/pairs")
    assert "made no data yet" in problems_of(service.submit(recipe=asked))["stages.learn.data.train"]
    stage = {"name": "pairs", "state": "succeeded", "artifact": "stages/pairs/dataset", "kind": "dataset"}
    service.run(first, {"run.json": record(stage), "stages/pairs/dataset/data.jsonl": '{"text": "a"}\n'})
    second = service.job(recipe=asked)
    named = read_file(service.folder(second) / "recipe.yaml")["stages"][0]["data"]["train"]
    assert named == f"../{first}/run/stages/pairs/dataset/data.jsonl"
    assert (service.folder(second) / named).is_file()
    data = service.folder(first) / "run/stages/pairs/dataset/data.jsonl"
    data.unlink()
    data.symlink_to("/etc/passwd")
    assert "made no data" in problems_of(service.submit(recipe=asked))["stages.learn.data.train"]


def test_another_jobs_model_that_is_there_is_named_by_its_folder(service):
    first = service.job()
    artifact = {"state": "succeeded", "artifact": "stages/learn/artifact", "kind": "model"}
    service.run(first, {"run.json": record(artifact, state="succeeded"), "stages/learn/artifact/config.json": "{}"})
    service.become(first, "starting", "succeeded")
    for value in (f"job:{first}", f"job:{first}/learn"):
        made = {**recipe(service.upload(TEXT)), "model": value}
        second = service.job(recipe=made)
        assert service.row(second).after == []
        named = read_file(service.folder(second) / "recipe.yaml")["model"]
        assert (service.folder(second) / named).resolve() == service.folder(first) / "run/stages/learn/artifact"


def test_a_job_that_failed_has_no_model(service):
    first = service.job()
    service.become(first, "failed")
    assert (
        "made no model" in problems_of(service.submit(recipe={**recipe("stage:x"), "model": f"job:{first}"}))["model"]
    )


def test_a_run_that_names_an_artifact_outside_itself_is_refused(service):
    first = service.job()
    service.run(first, {"run.json": record({"state": "succeeded", "artifact": "../../../x", "kind": "model"})})
    service.become(first, "starting", "succeeded")
    assert "model" in problems_of(service.submit(recipe={**recipe("stage:x"), "model": f"job:{first}"}))


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "PYTHONPATH", "PATH", "HF_ENDPOINT", "TUTELAGE_TOKEN", "CUDA_INJECTION64_PATH", "a-b", "A=B", ""],
)
def test_variables_that_make_programs_run_something_else_are_refused(service, name):
    for field in ("environment", "secrets"):
        assert service.submit(**{field: {name: "x"}}).status_code == 422


def test_secrets_are_in_one_file_that_its_owner_alone_reads(service):
    secret = "do-not-tell-9f3a"
    job = service.job(
        secrets={"JOB_TOKEN": secret}, environment={"JOB_MODE": "$(touch x); `id`"}, headers={"idempotency-key": "s"}
    )
    file = service.folder(job) / "secrets.json"
    assert json.loads(file.read_text()) == {"JOB_TOKEN": secret}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = service.http.get(f"/v1/jobs/{job}").text + service.http.get(f"/v1/jobs/{job}/events").text
    assert secret not in shown
    assert "JOB_TOKEN" in shown
    assert secret.encode() not in (service.settings.folder / "tutelage.db").read_bytes()
    assert secret.encode() not in Path(f"{service.settings.folder / 'tutelage.db'}-wal").read_bytes()


def test_names_of_any_characters_are_only_names(service):
    name = "; touch x && $(id) `id` | \" ' \\ ../.."
    job = service.job(name=name, labels={"team": "$(id)"})
    assert service.http.get(f"/v1/jobs/{job}").json()["name"] == name
    from tutelage_server.jobs.launching import launch_name

    assert launch_name(service.row(job)) == f"tutelage-{job}-0"


def test_who_lacks_the_scope_submits_nothing(service):
    reads = {"authorization": f"Bearer {make_key(service.store, scopes=['read'])}"}
    assert service.submit(headers=reads).status_code == 403
