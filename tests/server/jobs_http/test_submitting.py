"""What is submitted becomes a job and its folder together, once, and only when it can be afforded."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time

import pytest
from job_service import TEXT, JobService, NoChecks, problem, problems_of, recipe, record
from serving import make_key
from sqlalchemy import event, func, select, update

from tutelage.config import read_file
from tutelage.launcher import Launcher, LauncherUnreachable
from tutelage_server.jobs.checking import Checked, Checker
from tutelage_server.jobs.folders import forget_unborn
from tutelage_server.jobs.sweeping import covering, expand
from tutelage_server.store.store import StoreUnavailable
from tutelage_server.store.tables import Event, Job, Usage


@pytest.fixture
def service(tmp_path):
    with JobService(tmp_path) as made:
        yield made


def count(service):
    with service.store.reading() as session:
        return session.scalar(select(func.count()).select_from(Job))


def folders(service):
    jobs = service.settings.folder / "jobs"
    return sorted(path.name for path in jobs.glob("*")) if jobs.is_dir() else []


def test_a_job_its_first_event_and_its_folder(service):
    answer = service.submit(name="mine", priority=5, labels={"team": "a"}, resources={"cpus": 2}, max_retries=1)
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["name"], job["priority"], job["events"]) == ("queued", "mine", 5, 1)
    with service.store.reading() as session:
        events = list(session.scalars(select(Event)))
    assert [(event.number, event.kind, event.data["to"]) for event in events] == [(1, "state", "queued")]
    assert folders(service) == [job["id"]]
    assert {path.name for path in service.folder(job["id"]).iterdir()} == {"recipe.yaml", "data"}


def test_the_same_key_makes_one_job_and_asks_the_checker_once(service):
    fields = {"recipe": recipe(service.upload(TEXT)), "headers": {"idempotency-key": "k1"}}
    one, two = service.submit(**fields), service.submit(**fields)
    assert one.json() == two.json()
    assert two.headers["idempotency-replayed"] == "true"
    assert len(service.checker.asked) == count(service) == len(folders(service)) == 1
    assert service.submit(**fields, name="other").status_code == 422


def test_a_key_that_is_sent_from_many_threads_at_once_makes_one_job(service):
    fields = {"recipe": recipe(service.upload(TEXT)), "headers": {"idempotency-key": "k2"}}
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(service.submit(**fields).json()["id"])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == count(service) == len(folders(service)) == 1


def test_the_checks_problems_are_the_answer_and_nothing_is_made(service):
    service.checker.answer = problem("stages.learn.trainer.epochs", "is a word")
    answer = service.submit()
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert problems_of(answer) == {"stages.learn.trainer.epochs": "is a word"}
    assert (count(service), folders(service)) == (0, [])


def test_a_dry_run_says_the_same_and_makes_nothing(service):
    service.checker.answer = Checked(
        notes=["short"], data={"learn": {"rows": 3}}, estimate={"hours": 1.5}, highest_usd=2.0
    )
    plan = service.submit(dry_run=True, sweep={"stages.learn.trainer.seed": [1, 2]})
    assert plan.status_code == 200
    expected = {"problems": [], "notes": ["short"], "estimate": {"hours": 1.5}, "data": {"learn": {"rows": 3}}}
    assert plan.json() == {**expected, "jobs": 2, "max_usd": 2.0, "launcher": "local"}
    refused = service.submit(dry_run=True, max_usd=1.0).json()
    assert [each["place"] for each in refused["problems"]] == ["max_usd"]
    service.checker.answer = problem()
    assert service.submit(dry_run=True).json()["problems"][0]["place"] == "model"
    assert (count(service), folders(service)) == (0, [])


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"launcher": "moon"}, "launcher"),
        ({"after": ["job-0"]}, "after.0"),
        ({"labels": {"a b": "x"}}, "labels.a b"),
        ({"sweep": {"stages.none.trainer.seed": [1]}}, "sweep.stages.none.trainer.seed"),
        ({"sweep": {"stages.learn.trainer.seed": []}}, "sweep.stages.learn.trainer.seed"),
        ({"sweep": {"stages.learn.trainer.seed": list(range(201))}}, "sweep"),
        ({"environment": {"JOB_X": "1"}, "secrets": {"JOB_X": "2"}}, "secrets.JOB_X"),
        ({"resources": {"gpus": 99}}, "resources.gpus"),
    ],
)
def test_what_is_wrong_beside_the_recipe(service, fields, place):
    answer = service.submit(**fields)
    assert answer.status_code == 422, answer.text
    assert place in problems_of(answer)


@pytest.mark.parametrize(
    "body", [{}, {"recipe": 3}, {"recipe": {}, "x": 1}, {"recipe": {}, "priority": 101}, [], "x", None]
)
def test_malformed_bodies_are_refused(service, body):
    assert service.http.post("/v1/jobs", json=body).status_code in (400, 422)


def test_an_empty_recipe_is_refused_with_its_places(service):
    service.checker.answer = problem("model", "missing")
    assert {*problems_of(service.submit(recipe={}))} == {"model"}


def test_costs_are_bounded_by_estimates_and_by_time(tmp_path):
    checker = NoChecks(Checked(estimate={"usd": 3.0}, highest_usd=5.0))
    limits = {"job_usd": 8.0, "month_usd": 12.0}
    with JobService(tmp_path, checker, hourly_usd=2.0, limits=limits) as service:
        assert service.submit(max_usd=4.0).json()["code"] == "over_budget"
        job = service.submit(max_usd=5.0).json()
        assert (job["usd"], job["estimate"]["max_usd"]) == (5.0, 5.0)
        assert service.submit(resources={"minutes": 60, "nodes": 1}).json()["usd"] == 2.0
        refused = service.submit(resources={"minutes": 600})
        assert service.submit().status_code == 402  # 5 + 2 + 5 were used or promised, and another 5 are too much
        assert refused.status_code == 201
        checker.answer = Checked(highest_usd=9.0)
        assert problems_of(service.submit())["the job"].startswith("may cost 9.00 USD")
        checker.answer = Checked()
        unknown = service.submit()
        assert (unknown.status_code, unknown.json()["code"]) == (402, "cost_unknown")


def test_a_tenant_has_so_many_jobs_at_a_time(tmp_path):
    with JobService(tmp_path, limits={"active_jobs": 2}) as service:
        first = service.job()
        assert service.submit(sweep={"stages.learn.trainer.seed": [1, 2]}).status_code == 403
        service.job()
        assert service.submit().json()["code"] == "too_many_jobs"
        service.become(first, "cancelled")
        assert service.submit().status_code == 201


def test_a_sweep_is_a_job_for_every_combination(service):
    answer = service.submit(
        sweep={"stages.learn.trainer.seed": [1, 2, 3], "stages.learn.trainer.learning_rate": [1e-5, 0.5]}
    )
    jobs = answer.json()["jobs"]
    assert [job["sweep_index"] for job in jobs] == list(range(6))
    assert {job["sweep"] for job in jobs} == {answer.json()["sweep"]}
    written = [read_file(service.folder(job["id"]) / "recipe.yaml")["stages"][0]["trainer"] for job in jobs]
    found = [(each["seed"], each["learning_rate"]) for each in written]
    assert found == [(seed, rate) for seed in (1, 2, 3) for rate in (1e-5, 0.5)]
    assert len(service.checker.asked) == 3
    files = {(service.folder(job["id"]) / "data/story.txt").stat().st_ino for job in jobs}
    assert len(files) == 1
    listed = service.http.get("/v1/jobs", params={"sweep": answer.json()["sweep"], "limit": 4}).json()
    assert len(listed["items"]) == 4


def test_the_combinations_that_are_checked_have_every_value():
    sweep = {"a": [1, 2, 3], "b": [1, 2], "c": [5]}
    made = expand({}, sweep)
    assert len(made) == 6
    for field, values in sweep.items():
        assert {made[at][field] for at in covering(sweep)} == set(values)
    assert len(covering(sweep)) == 3
    assert covering({}) == [0]
    assert expand({"name": "x"}, {}) == [{"name": "x"}]


@pytest.mark.parametrize(
    "value", ["no", "1e-5", "", "a: b", "it's", None, True, 1e-5, [1, "x"], {"k": "v"}, "\u00e9\n"]
)
def test_a_sweeps_values_arrive_as_they_are(value):
    assert expand({"a": {}}, {"a.b": [value]}) == [{"a": {"b": value}}]


def test_no_job_is_made_when_the_store_is_gone_at_the_end_and_a_later_look_clears_up(service, monkeypatch):
    fields = {"recipe": recipe(service.upload(TEXT))}
    monkeypatch.setattr(
        "tutelage_server.jobs.submitting.add_usage",
        lambda *_, **__: (_ for _ in ()).throw(StoreUnavailable.at("the database", "can't be used now")),
    )
    assert service.submit(**fields).status_code == 503
    monkeypatch.undo()
    assert count(service) == 0
    assert len(folders(service)) == 1  # it may have been committed for all that is known
    kept = service.job(**fields)
    assert forget_unborn(service.store, service.settings) == 0
    assert forget_unborn(service.store, service.settings, older=-1) == 1
    assert folders(service) == [kept]


def test_a_full_disk_is_told_and_leaves_nothing(service, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    fields = {"recipe": recipe(service.upload(TEXT))}
    monkeypatch.setattr("tutelage_server.jobs.drafting.place_file", full)
    answer = service.submit(**fields)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert (count(service), folders(service)) == (0, [])


def test_what_failed_is_tried_again_from_what_it_saved(service):
    first = service.job(secrets={"JOB_TOKEN": "t"}, name="n", labels={"a": "b"})
    saved = {"stages/learn/checkpoints/2/model.safetensors": b"weights", "events.jsonl": '{"event": "step"}\n{"torn'}
    service.run(first, {"run.json": record({}), ".lock": "", **saved})
    assert service.http.post(f"/v1/jobs/{first}/retry").status_code == 409
    service.become(first, "starting", "failed", reason="it broke")
    answer = service.http.post(f"/v1/jobs/{first}/retry", headers={"idempotency-key": "r"})
    again = service.http.post(f"/v1/jobs/{first}/retry", headers={"idempotency-key": "r"})
    job = answer.json()
    assert answer.status_code == 201
    assert again.json() == job
    assert (job["retry_of"], job["state"], job["name"], job["labels"]) == (first, "queued", "n", {"a": "b"})
    assert service.row(first).state == "failed"
    old, new = service.folder(first), service.folder(job["id"])
    checkpoint = "run/stages/learn/checkpoints/2/model.safetensors"
    assert (new / checkpoint).stat().st_ino == (old / checkpoint).stat().st_ino
    assert (new / "run/run.json").stat().st_ino != (old / "run/run.json").stat().st_ino
    assert read_file(new / "run/run.json")["base"] == str(new)
    assert not (new / "run/.lock").exists()
    assert (new / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert service.row(job["id"]).run_offset == len('{"event": "step"}\n')
    assert read_file(new / "recipe.yaml") == read_file(old / "recipe.yaml")


def test_a_job_that_never_ran_is_tried_again_too(service):
    first = service.job()
    service.become(first, "cancelled")
    again = service.http.post(f"/v1/jobs/{first}/retry").json()
    assert not (service.folder(again["id"]) / "run").exists()
    assert (service.folder(again["id"]) / "data/story.txt").read_text() == TEXT
    assert service.http.post("/v1/jobs/job-0/retry").status_code == 404
    assert service.http.post(f"/v1/jobs/{first}/retry", headers=service.other).status_code == 404


def test_what_no_launcher_is_left_for_is_not_tried_again(service):
    job = service.job()
    service.become(job, "cancelled")
    with service.store.writing() as session:
        session.execute(update(Job).values(launcher="gone"))
    answer = service.http.post(f"/v1/jobs/{job}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_retry")
    assert count(service) == len(folders(service)) == 1


def test_a_cluster_that_can_not_be_asked_is_a_reason_to_ask_again(service):
    class Away(Launcher):
        name = "away"
        launch = find = statuses = stop = kill = None

        def problems(self, resources):
            raise LauncherUnreachable.at("slurm", "the cluster can't be asked now: timed out")

    service.submitting._launchers["local"] = Away()
    answer = service.submit()
    assert (answer.status_code, answer.json()["code"]) == (503, "launcher_unreachable")
    assert answer.headers["retry-after"] == "10"
    assert "timed out" in problems_of(answer)["local"]
    assert (count(service), folders(service)) == (0, [])


def test_the_key_s_jobs_are_counted_as_they_are_made(service):
    keyed = {"recipe": recipe(service.upload(TEXT)), "headers": {"idempotency-key": "k"}}
    for _ in range(2):
        service.submit(**keyed)
    service.submit(sweep={"stages.learn.trainer.seed": [1, 2, 3]})
    service.submit(dry_run=True)
    first = service.job()
    service.become(first, "cancelled")
    service.http.post(f"/v1/jobs/{first}/retry")
    with service.store.reading() as session:
        assert [row.jobs for row in session.scalars(select(Usage))] == [1 + 3 + 1 + 1]


def test_folders_without_jobs_are_found_among_more_than_a_question_may_name(service):
    kept = service.job()
    for number in range(1100):
        (service.settings.folder / "jobs" / f"job-{number}").mkdir()

    @event.listens_for(service.store.engine, "connect")
    def limit(connection, _):
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 600)

    service.store.engine.dispose()
    assert forget_unborn(service.store, service.settings, older=-1) == 1100
    assert folders(service) == [kept]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A service that checks in earnest."""
    with JobService(tmp_path_factory.mktemp("checked"), Checker(seconds=120)) as made:
        yield made


def test_a_recipe_is_checked_as_the_command_line_does(checked, tmp_path):
    from tutelage.api import check

    (tmp_path / "story.txt").write_text(TEXT)
    good, wrong = recipe("story.txt"), recipe("story.txt", max_length=4, learning_rate="fast")
    wrong["stages"][0]["phase"] = {"kind": "pretrian"}
    (tmp_path / "wrong.json").write_text(__import__("json").dumps(wrong))
    local = check(tmp_path / "wrong.json")
    wrong["stages"][0]["data"] = good["stages"][0]["data"] = checked.upload(TEXT)
    answer = checked.submit(recipe=wrong)
    assert answer.status_code == 422
    assert {(each["place"], each["wrong"]) for each in answer.json()["problems"]} == {
        (each.place, each.wrong) for each in local.problems
    }
    plan = checked.submit(recipe=good, dry_run=True).json()
    assert plan["problems"] == []
    assert plan["data"]["learn"]
    assert plan["estimate"]["peak_gib"] > 0
    assert str(checked.settings.folder) not in str(plan)


def test_data_that_can_not_be_read_is_found_before_a_job_is_made(checked):
    made = recipe(checked.upload('{"text": "ok"}\n{"text": \n', "rows.jsonl"))
    answer = checked.submit(recipe=made)
    assert answer.status_code == 422
    assert any(place.startswith("data/rows.jsonl line 2") for place in problems_of(answer))


def test_a_pickle_is_never_opened(checked, tmp_path):
    import pickle

    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "fired"),)

    data = pickle.dumps(Canary())
    for name in ("rows.pkl", "rows.jsonl", "rows.parquet", "rows.txt"):
        checked.submit(recipe=recipe(checked.upload(data, name)))
    checked.submit(recipe={**recipe("stage:x"), "model": checked.upload(data, "weights.gguf")})
    assert not (tmp_path / "fired").exists()


def test_a_template_can_not_reach_out_of_its_sandbox(checked, tmp_path):
    reach = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.mkdir('"
        + str(tmp_path / "fired")
        + "') }}"
    )
    made = {**recipe(checked.upload(TEXT)), "tokenizer": {"chat_template": checked.upload(reach, "chat.jinja")}}
    checked.submit(recipe=made, dry_run=True)
    assert not (tmp_path / "fired").exists()


def test_a_checker_that_dies_is_started_anew_and_answers_are_remembered(checked):
    fields = {"recipe": recipe(checked.upload(TEXT), seed=7), "dry_run": True}
    first = checked.submit(**fields).json()
    pid = checked.checker._process.pid
    os.kill(pid, signal.SIGKILL)
    assert checked.submit(**fields).json() == first  # known, so nothing is asked
    assert checked.checker._process.pid == pid
    fields["recipe"]["stages"][0]["trainer"]["seed"] = 8
    assert checked.submit(**fields).json()["problems"] == []
    assert checked.checker._process.pid != pid


def test_a_check_that_takes_too_long_ends_and_says_so(tmp_path):
    with JobService(tmp_path, Checker(seconds=0.01)) as service:
        began = time.monotonic()
        assert "could not be checked" in problems_of(service.submit())["recipe"]
        assert service.checker._process is None
        assert time.monotonic() - began < 60


def test_a_checker_ends_with_its_server(tmp_path):
    checker = Checker()
    process = checker._running()
    process.stdin.close()  # as the kernel does for a server that was killed
    assert process.wait(60) == 0
    checker.close()


def test_scopes(service):
    reader = {"authorization": f"Bearer {make_key(service.store, scopes=['read'])}"}
    job = service.job()
    for verb in ("cancel", "pause", "resume", "retry"):
        assert service.http.post(f"/v1/jobs/{job}/{verb}", headers=reader).status_code == 403
        assert service.http.post(f"/v1/jobs/{job}/{verb}", headers=service.other).status_code == 404
