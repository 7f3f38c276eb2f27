"""Jobs are listed, shown and steered; their logs, figures and files are read, and nothing beside them."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from job_service import JobService, problems_of, record
from serving import make_key

from tutelage_server.store.tables import new_id


@pytest.fixture
def service(tmp_path):
    with JobService(tmp_path, limits={"requests_per_minute": 1_000_000}) as made:
        yield made


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["items"]]


def test_lists_come_newest_first_in_pages_that_stay_put(service):
    made = [service.job(name=f"job {number}") for number in range(7)][::-1]
    first = service.http.get("/v1/jobs", params={"limit": 3})
    assert ids(first) == made[:3]
    service.job()  # a newer one moves nothing
    second = service.http.get("/v1/jobs", params={"limit": 3, "cursor": first.json()["next"]})
    assert ids(second) == made[3:6]
    last = service.http.get("/v1/jobs", params={"limit": 3, "cursor": second.json()["next"]})
    assert (ids(last), last.json()["next"]) == (made[6:], None)
    assert "recipe" not in first.json()["items"][0] or first.json()["items"][0]["recipe"] is None


def test_lists_are_filtered(service):
    one = service.job(name="one", labels={"team": "a", "stage.x/y": "1"})
    two = service.job(name="two", labels={"team": "b"})
    service.become(one, "starting", "running")
    middle = service.http.get(f"/v1/jobs/{two}").json()["created_at"]
    three = service.job(name="two")
    for wanted, params in [
        ([one], {"state": "running"}),
        ([three, two, one], {"state": ["running", "queued"]}),
        ([three, two], {"name": "two"}),
        ([one], {"label": "team=a"}),
        ([two, one], {"label": "team"}),
        ([one], {"label": ["team=a", "stage.x/y=1"]}),
        ([], {"label": ["team=a", "team=b"]}),
        ([], {"label": "team=' or 1=1 --"}),
        ([three], {"created_after": middle}),
        ([], {"sweep": "sweep-x"}),
    ]:
        assert ids(service.http.get("/v1/jobs", params=params)) == wanted
    for wrong in ({"state": "odd"}, {"label": '"'}, {"limit": 201}, {"limit": 0}, {"created_after": "x"}):
        assert service.http.get("/v1/jobs", params=wrong).status_code in (400, 422)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_times_before_the_first_year_and_after_the_last_are_refused(service, at):
    listed = service.http.get("/v1/jobs", params={"created_after": at})
    file = service.http.post("/v1/files", json={"name": "a.jsonl", "bytes": 3, "expires_at": at})
    assert [problems_of(answer) for answer in (listed, file)] == [
        {"created_after": "is a time that no calendar here has"},
        {"expires_at": "is a time that no calendar here has"},
    ]


def test_what_did_not_change_is_not_sent_again(service):
    job = service.job()
    for path in ("/v1/jobs", f"/v1/jobs/{job}"):
        tag = service.http.get(path).headers["etag"]
        assert service.http.get(path, headers={"if-none-match": tag}).status_code == 304
    service.become(job, "starting")
    assert service.http.get(path, headers={"if-none-match": tag}).status_code == 200


def test_progress_is_shown(service):
    job = service.job()
    with service.store.writing() as session:
        row = session.get_one(type(service.row(job)), job)
        row.progress = {
            "stage": "learn",
            "step": 3,
            "steps": 10,
            "figures": {"loss": 1.5, "seconds": 2.0},
            "done": ["a"],
        }
    shown = service.http.get(f"/v1/jobs/{job}").json()["progress"]
    assert (shown["stage"], shown["step"], shown["loss"], shown["eta_seconds"]) == ("learn", 3, 1.5, 14.0)


def test_steering_a_job_that_is_on_no_machine(service):
    job = service.job()

    def post(verb):
        return service.http.post(f"/v1/jobs/{job}/{verb}")

    assert post("pause").json()["state"] == "paused"
    assert post("pause").json()["state"] == "paused"
    assert post("resume").json()["state"] == "queued"
    assert post("cancel").json()["state"] == "cancelled"
    assert post("cancel").status_code == 200
    conflict = post("resume")
    assert (conflict.status_code, conflict.json()["code"]) == (409, "state_conflict")


def test_steering_a_job_that_runs_leaves_the_doing_to_the_dispatcher(service):
    job = service.job()
    service.become(job, "starting", "running")
    paused = service.http.post(f"/v1/jobs/{job}/pause").json()
    assert (paused["state"], paused["wanted"]) == ("running", "pause")
    cancelled = service.http.post(f"/v1/jobs/{job}/cancel").json()
    assert (cancelled["state"], cancelled["wanted"]) == ("running", "cancel")
    for verb in ("pause", "resume"):  # a colleague's, before the dispatcher has seen to it
        assert service.http.post(f"/v1/jobs/{job}/{verb}").status_code == 409
    assert service.row(job).wanted == "cancel"
    service.become(job, "succeeded")
    assert service.http.post(f"/v1/jobs/{job}/pause").status_code == 409
    assert service.http.get(f"/v1/jobs/{job}").json()["state"] == "succeeded"


def test_a_job_that_waited_for_people_goes_on(service):
    job = service.job()
    service.become(job, "starting", "running", "waiting", reason="rank 3 answers")
    assert service.http.post(f"/v1/jobs/{job}/resume").json()["state"] == "queued"


def log(service, job, *parts):
    for number, text in enumerate(parts, 1):
        folder = service.folder(job) / "attempts" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_bytes(text)


def test_the_log_is_that_of_all_attempts(service):
    job = service.job()
    path = f"/v1/jobs/{job}/log"
    assert service.http.get(path).content == b""
    parts = [b"one\n", b"", b"three\xff\n", *[b"%d\n" % number for number in range(4, 12)]]
    log(service, job, *parts)
    whole = b"".join(parts)
    assert service.http.get(path).content == whole
    for offset in range(len(whole) + 2):
        assert service.http.get(path, params={"offset": offset}).content == whole[offset:]
    partial = service.http.get(path, headers={"range": "bytes=2-6"})
    assert (partial.status_code, partial.content) == (206, whole[2:7])
    assert partial.headers["content-range"] == f"bytes 2-6/{len(whole)}"
    assert service.http.get(path, headers={"range": "bytes=-3"}).content == whole[-3:]
    assert service.http.get(path, headers={"range": "bytes=900-"}).status_code == 416
    assert service.http.get(path).headers["content-type"].startswith("text/plain")
    (service.folder(job) / "attempts/12").mkdir()
    (service.folder(job) / "attempts/12/log.txt").symlink_to("/etc/passwd")
    assert service.http.get(path).content == whole


EVENTS = "".join(
    f'{{"time": "t", "event": "{kind}", "stage": "learn", {rest}}}\n'
    for kind, rest in [
        ("stage_started", '"steps": 3'),
        *(("step", f'"step": {step}, "loss": {4 - step}.5, "seconds": 1.0') for step in (1, 2, 3)),
        ("eval", '"step": 3, "eval_loss": 0.25'),
    ]
)


def test_figures_are_series(service):
    job = service.job()
    path = f"/v1/jobs/{job}/metrics"
    assert service.http.get(path).json() == {"stages": []}
    service.run(
        job, {"run.json": record({"state": "succeeded", "metrics": {"eval_loss": 0.25}}), "events.jsonl": EVENTS}
    )
    (stage,) = service.http.get(path).json()["stages"]
    assert stage["series"]["loss"] == [[1, 3.5], [2, 2.5], [3, 1.5]]
    assert stage["series"]["eval_loss"] == [[3, 0.25]]
    assert stage["metrics"] == {"eval_loss": 0.25}
    assert service.http.get(path, params={"points": 2}).json()["stages"][0]["series"]["loss"] == [[1, 3.5], [3, 1.5]]
    assert service.http.get(path, params={"stage": "other"}).json() == {"stages": []}


def test_jobs_are_compared(service):
    one, two = service.job(), service.job()
    for job, rate in ((one, 0.1), (two, 0.2)):
        text = f"name: tiny\nstages:\n- {{name: learn, trainer: {{learning_rate: {rate}, seed: 1}}}}\n"
        service.run(job, {"run.json": record({}), "events.jsonl": EVENTS, "recipe.yaml": text})
    found = service.http.get("/v1/compare", params={"jobs": f"{one},{two}"}).json()
    assert found["jobs"] == [one, two]
    assert {"field": "stages.learn.trainer.learning_rate", "values": [0.1, 0.2]} in found["settings"]
    assert {"field": "learn.loss", "values": [1.5, 1.5]} in found["metrics"]
    bare = service.job()
    assert service.http.get("/v1/compare", params={"jobs": f"{one},{bare}"}).status_code == 409
    assert service.http.get("/v1/compare", params={"jobs": one}, headers=service.other).status_code == 404
    assert service.http.get("/v1/compare", params={"jobs": ","}).status_code == 422


FILES = {
    "run.json": record({}),
    "report.html": "<p>",
    "events.jsonl": EVENTS,
    "stages/learn/metrics.csv": "a\n1\n",
    "stages/learn/artifact/model.safetensors": bytes(range(256)) * 8,
    "stages/learn/artifact/deep/er/x.json": "{}",
}
HIDDEN = {
    "stages/learn/checkpoints/2/model.safetensors": "w",
    "ranking/people/tasks.json": "who wrote what",
    ".lock": "",
    "stages/learn/.part": "x",
}


def test_the_files_of_a_job_are_listed_with_their_hashes(service):
    job = service.job()
    path = f"/v1/jobs/{job}/artifacts"
    assert service.http.get(path).json() == {"items": [], "next": None}
    folder = service.run(job, {**FILES, **HIDDEN})
    found = service.http.get(path).json()["items"]
    assert [each["path"] for each in found] == sorted(FILES)
    for each in found:
        data = (folder / each["path"]).read_bytes()
        assert (each["bytes"], each["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    paged, cursor = [], None
    while True:
        page = service.http.get(path, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        paged += page["items"]
        cursor = page["next"]
        if cursor is None:
            break
    assert paged == found


def test_hashes_are_computed_once_and_again_when_a_file_changed(service, monkeypatch):
    job = service.job()
    folder = service.run(job, {"report.html": "one"})
    path = f"/v1/jobs/{job}/artifacts"
    before = service.http.get(path).json()["items"][0]["sha256"]

    def fail(*_):
        raise AssertionError("it was hashed already")

    with monkeypatch.context() as patch:
        patch.setattr("tutelage_server.jobs.artifacts.hashlib.file_digest", fail)
        assert service.http.get(path).json()["items"][0]["sha256"] == before
    (folder / "report.html").write_text("two")
    assert service.http.get(path).json()["items"][0]["sha256"] == hashlib.sha256(b"two").hexdigest()


def test_a_file_is_fetched_whole_or_in_part(service):
    job = service.job()
    service.run(job, FILES)
    name = "stages/learn/artifact/model.safetensors"
    path, data = f"/v1/jobs/{job}/artifacts/{name}", FILES[name]
    whole = service.http.get(path)
    assert whole.content == data
    assert whole.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert "attachment" in whole.headers["content-disposition"]
    part = service.http.get(path, headers={"range": "bytes=1000-", "if-range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, data[1000:])
    assert service.http.get(path, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    assert service.http.get(path, headers={"range": f"bytes={len(data)}-"}).status_code == 416
    assert service.http.get(path, headers=service.other).status_code == 404


ESCAPES = [
    "../recipe.yaml",
    "../secrets.json",
    "..%2fsecrets.json",
    "%2e%2e/secrets.json",
    "%2e%2e%2fsecrets.json",
    "%252e%252e/secrets.json",
    "%252e%252e%252fsecrets.json",
    "stages/../../secrets.json",
    "stages/%2e%2e/%2e%2e/secrets.json",
    "..\\secrets.json",
    "..%5csecrets.json",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "link",
    "linked/passwd",
    "stages/learn/artifact/out",
    "fifo",
    "stages",
    "stages/learn/artifact",
    "report.html%0a",
    "x" * 2000,
    *HIDDEN,
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out_of_what_a_job_gives_away(service, path):
    job = service.job(secrets={"JOB_TOKEN": "hush"})
    folder = service.run(job, {**FILES, **HIDDEN})
    (folder / "link").symlink_to("../secrets.json")
    (folder / "linked").symlink_to("/etc")
    (folder / "stages/learn/artifact/out").symlink_to(service.settings.folder / "tutelage.db")
    os.mkfifo(folder / "fifo")
    import httpx

    url = httpx.URL(f"http://127.0.0.1/v1/jobs/{job}/artifacts/").copy_with(
        raw_path=f"/v1/jobs/{job}/artifacts/{path}".encode()
    )
    answer = service.http.send(service.http.build_request("GET", url))
    assert answer.status_code in (400, 404), answer.text
    assert "hush" not in answer.text
    listed = service.http.get(f"/v1/jobs/{job}/artifacts").json()["items"]
    assert {each["path"] for each in listed} == set(FILES)


def test_what_is_anothers_is_not_there(service):
    job = service.job()
    service.run(job, FILES)
    for path in ("", "/events", "/log", "/metrics", "/artifacts", "/artifacts/report.html", "/rankings?person=ann"):
        theirs = service.http.get(f"/v1/jobs/{job}{path}", headers=service.other)
        nobody = service.http.get(f"/v1/jobs/{new_id('job')}{path}", headers=service.other)
        assert theirs.status_code == nobody.status_code == 404
    assert ids(service.http.get("/v1/jobs", headers=service.other)) == []


def test_many_ask_for_a_jobs_files_at_once(service):
    job = service.job()
    service.run(job, {f"stages/learn/artifact/{number}.json": str(number) for number in range(50)})
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: service.http.get(f"/v1/jobs/{job}/artifacts").json(), range(12)))
    assert all(each == found[0] for each in found)
    assert len(found[0]["items"]) == 50


def test_a_key_that_only_ranks_reads_nothing_else(service):
    job = service.job()
    ranks = {"authorization": f"Bearer {make_key(service.store, scopes=['rank'])}"}
    for path in ("", "/events", "/log", "/metrics", "/artifacts"):
        assert service.http.get(f"/v1/jobs/{job}{path}", headers=ranks).status_code == 403
