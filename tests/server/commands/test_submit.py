"""`tutelage submit` and `tutelage jobs` against a server that listens; the tests play the machine that runs the jobs."""

from __future__ import annotations

import io
import json
import threading
import time

import pytest

from tutelage.runs.attempt import LOG
from tutelage_server.cli.jobs import worst
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.launching import job_folder
from tutelage_server.jobs.states import transition
from tutelage_server.store.store import lock_job
from tutelage_server.store.tables import Job, StoredFile, Tenant

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}


@pytest.fixture
def recipe(tmp_path):
    """A tiny recipe, beside the two files that it names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "text.txt").write_text("\n\n".join(f"one two three {number}" for number in range(60)))
    (folder / "held.txt").write_text("\n\n".join(f"four five {number}" for number in range(10)))
    data = {"train": "text.txt", "eval": "held.txt"}
    trainer = {"max_length": 32, "tokens_per_step": 256, "max_steps": 2, "precision": "fp32", "devices": 1}
    phase = {"kind": "pretrain", "shape": SHAPE, "vocabulary": 280}
    stage = {"name": "read", "phase": phase, "data": data, "trainer": trainer}
    file = folder / "recipe.json"
    file.write_text(json.dumps({"name": "tiny", "model": "new", "stages": [stage]}))
    return file


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


def all_jobs(server):
    with server.store.reading() as session:
        mine = session.query(Tenant).filter_by(name=server.tenant).one()
        return session.query(Job).filter_by(tenant_id=mine.id).order_by(Job.id).all()


def files(server):
    with server.store.reading() as session:
        mine = session.query(Tenant).filter_by(name=server.tenant).one()
        return session.query(StoredFile).filter_by(tenant_id=mine.id).all()


def move(server, job_id, *states, **fields):
    """Play the machine: take a job through states."""
    for state in states:
        with server.store.writing() as session:
            job = lock_job(session, job_id)
            transition(session, job, state, by="test", **fields)


def say(server, job_id, kind, **data):
    with server.store.writing() as session:
        append_event(session, lock_job(session, job_id), kind, data)


def make_run(server, job_id, state="succeeded"):
    """What a run leaves, as small as it gets."""
    run = job_folder(server.settings, job_id) / "run"
    (run / "stages" / "read" / "artifact").mkdir(parents=True)
    stages = [
        {"name": "read", "state": state, "phase": "pretrain", "kind": "model", "artifact": "stages/read/artifact"}
    ]
    (run / "run.json").write_text(json.dumps({"name": "tiny", "state": state, "created": "2026", "stages": stages}))
    (run / "recipe.yaml").write_text("name: tiny\n")
    (run / "events.jsonl").write_text("")
    (run / "stages" / "read" / "artifact" / "model.safetensors").write_bytes(b"weights" * 100)
    (run / "stages" / "read" / "checkpoints").mkdir()
    (run / "stages" / "read" / "checkpoints" / "1.bin").write_bytes(b"no")


def test_a_recipe_is_sent_with_the_files_that_it_names_once(tutelage, server, recipe):
    first = tutelage("submit", str(recipe), "--label", "a=b", "--name", "mine", "--priority", "7", "--retries", "1")
    assert first.code == 0, first.err
    (job,) = all_jobs(server)
    assert first.out.strip() == job.id
    assert (job.name, job.labels, job.priority, job.max_retries) == ("mine", {"a": "b"}, 7, 1)
    assert sorted(file.name for file in files(server)) == ["held.txt", "text.txt"]
    data = job.recipe["stages"][0]["data"]
    assert data["train"].startswith("file:")
    assert "sending 2 files" in first.err
    again = tutelage("submit", str(recipe), "--set", "stages.read.trainer.seed=1")
    assert again.code == 0, again.err
    assert "sending" not in again.err
    assert len(files(server)) == 2
    assert all_jobs(server)[1].recipe["stages"][0]["trainer"]["seed"] == 1
    (recipe.parent / "held.txt").write_text("six seven\n\neight nine\n\nten eleven")
    assert "sending 1 file (" in tutelage("submit", str(recipe)).err


def test_a_dry_run_shows_the_plan_and_makes_no_job(tutelage, server, recipe):
    shown = tutelage("submit", str(recipe), "--dry-run")
    assert shown.code == 0, shown.err
    assert "memory:" in shown.err
    assert "would run on local" in shown.err
    plan = tutelage("submit", str(recipe), "--dry-run", "--json").lines[-1]
    assert plan["problems"] == []
    assert plan["estimate"]["peak_gib"] > 0
    assert all_jobs(server) == []


def test_what_is_wrong_is_said_as_check_says_it_and_nothing_is_submitted(tutelage, server, recipe):
    outcome = tutelage("submit", str(recipe), "--set", "stages.read.trainer.max_length=7", "--json")
    assert outcome.code == 2
    assert "max_length" in outcome.lines[-1]["error"]["problems"][0]["place"]
    assert all_jobs(server) == []


@pytest.mark.parametrize(
    ("value", "said"), [("none.txt", "there is no file"), (".", "is a folder"), ("~/none.txt", "there is no file")]
)
def test_files_that_are_not_there_are_told_before_anything_is_sent(tutelage, server, recipe, value, said):
    outcome = tutelage("submit", str(recipe), "--set", f"stages.read.data.train={value}")
    assert outcome.code == 2
    assert "stages.read.data.train: " in outcome.err
    assert said in outcome.err
    assert files(server) == []


def test_the_same_key_makes_one_job(tutelage, server, recipe):
    one, other = (tutelage("submit", str(recipe), "--idempotency-key", "monday") for _ in range(2))
    assert one.out == other.out
    assert len(all_jobs(server)) == 1


def test_a_secret_is_in_no_argument_and_in_no_row(tutelage, server, recipe, monkeypatch):
    told = tutelage("submit", str(recipe), "--secret", "HF_TOKEN=abc123")
    assert (told.code, "abc123" in told.err) == (2, False)
    assert "no one to ask" in tutelage("submit", str(recipe), "--secret", "HF_TOKEN").err
    monkeypatch.setenv("HF_TOKEN", "very-secret-value")
    outcome = tutelage("submit", str(recipe), "--secret", "HF_TOKEN", "--env", "OMP_NUM_THREADS=1")
    assert outcome.code == 0, outcome.err
    (job,) = all_jobs(server)
    assert (job.secrets, job.environment) == (["HF_TOKEN"], {"OMP_NUM_THREADS": "1"})
    shown = tutelage("jobs", "show", job.id, "--json")
    assert "very-secret-value" not in outcome.out + outcome.err + shown.out + repr(vars(job))


def test_a_sweep_is_a_job_for_each_value(tutelage, server, recipe):
    outcome = tutelage("submit", str(recipe), "--sweep", "stages.read.trainer.seed=1,2,3")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.split()) == 3
    assert sorted(job.recipe["stages"][0]["trainer"]["seed"] for job in all_jobs(server)) == [1, 2, 3]
    assert "malformed" in tutelage("submit", str(recipe), "--sweep", "a=[1,").err


def test_jobs_are_listed_shown_and_steered(tutelage, server, recipe):
    made = [tutelage("submit", str(recipe), "--label", f"n={number}").out.strip() for number in range(2)]
    assert [job["id"] for job in tutelage("jobs", "list", "--json").lines[0]] == made[::-1]
    assert [job["id"] for job in tutelage("jobs", "list", "--label", "n=1", "--json").lines[0]] == made[1:]
    assert tutelage("jobs", "list", "--state", "running", "--json").lines == [[]]
    assert made[0] in tutelage("jobs", "list").out
    assert "queued" in tutelage("jobs", "show", made[0]).out
    assert tutelage("jobs", "pause", made[0]).out.split() == [made[0], "paused"]
    assert tutelage("jobs", "resume", made[0]).out.split() == [made[0], "queued"]
    assert tutelage("jobs", "cancel", *made, "--json").lines[0][1]["state"] == "cancelled"
    assert tutelage("jobs", "wait", made[0]).code == 4
    assert tutelage("jobs", "resume", made[0]).code == 2
    again = tutelage("jobs", "retry", made[0], "--json").lines[0][0]
    assert (again["state"], again["retry_of"]) == ("queued", made[0])
    assert tutelage("jobs", "show", "job-none").code == 2
    assert tutelage("jobs", "show", "").code == 2
    assert tutelage("jobs", "show", f"job:{made[0]}", "--json").lines[0]["id"] == made[0]


def test_one_job_that_can_not_be_steered_keeps_no_other_from_it(tutelage, server, recipe):
    made = [tutelage("submit", str(recipe)).out.strip() for _ in range(2)]
    outcome = tutelage("jobs", "cancel", made[0], "job-none", "job-no", made[1])
    assert (outcome.code, outcome.err.count("error:")) == (2, 2)
    assert [line.split() for line in outcome.out.splitlines()] == [[each, "cancelled"] for each in made]
    again = tutelage("jobs", "pause", *made, "--json")
    assert (again.code, again.lines[0], len(again.lines[1]["error"]["problems"])) == (2, [], 2)


def test_what_is_asked_of_a_job_that_runs_is_said_to_be_on_its_way(tutelage, server, recipe):
    job_id = tutelage("submit", str(recipe)).out.strip()
    move(server, job_id, "starting", "running")
    outcome = tutelage("jobs", "pause", job_id)
    assert outcome.out.split() == [job_id, "running"]
    assert "asked to save and stop" in outcome.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--max-cost", "nan"], "not a finite number"),
        (["--memory", "inf"], "not a finite number"),
        (["--idempotency-key", "ü"], "--idempotency-key"),
        (["--nodes", "2"], "--nodes: "),
        (["--env", "FOO=1"], "--env FOO: "),
        (["--after", "job-none"], "--after: "),
        (["--on", "nowhere"], "--on: "),
    ],
)
def test_what_is_wrong_is_said_of_the_option_that_asked_for_it(tutelage, server, recipe, given, said):
    outcome = tutelage("submit", str(recipe), *given)
    assert (outcome.code, said in outcome.err) == (2, True), outcome.err
    assert all_jobs(server) == []


def test_a_highest_cost_that_refuses_nothing_is_told(tutelage, server, recipe):
    outcome = tutelage("submit", str(recipe), "--max-cost", "1", "--dry-run")
    assert (outcome.code, "has no prices" in outcome.err) == (0, True)


def test_labels_to_list_by_are_names_and_values(tutelage, server):
    assert "is not NAME=VALUE" in tutelage("jobs", "list", "--label", "rates").err
    assert tutelage("jobs", "list", "--local", "--state", "running").code == 2


def test_logs_are_text_or_json_lines_and_events_are_on_stdout(tutelage, server, recipe):
    job_id = tutelage("submit", str(recipe)).out.strip()
    move(server, job_id, "starting", "running")
    say(server, job_id, "step", stage="read", step=1, steps=2, loss=2.5)
    say(server, job_id, "step", stage="read", step=2, steps=2, loss=1.5)
    attempt = job_folder(server.settings, job_id) / "attempts" / "1"
    attempt.mkdir(parents=True)
    (attempt / LOG).write_text("one\n\ntwo ü\nthree")
    move(server, job_id, "succeeded")
    assert tutelage("jobs", "logs", job_id).out == "one\n\ntwo ü\nthree"
    for follow in ([], ["-f"]):
        lines = tutelage("jobs", "logs", job_id, *follow, "--json").lines
        assert [line["line"] for line in lines] == ["one", "", "two ü", "three"]
        shown = tutelage("jobs", "events", job_id, *follow).out.splitlines()
        assert [line for line in shown if "loss" in line] == ["read: step 1/2, loss 2.5", "read: step 2/2, loss 1.5"]


def test_where_runs_can_not_be_kept_is_a_sentence(tutelage, server, recipe, tmp_path, monkeypatch):
    job_id = tutelage("submit", str(recipe)).out.strip()
    make_run(server, job_id)
    move(server, job_id, "starting", "running", "succeeded")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUTELAGE_RUNS", str(tmp_path / "file"))
    outcome = tutelage("jobs", "artifacts", "get", job_id)
    assert (outcome.code, "$TUTELAGE_RUNS" in outcome.err) == (2, True)


def test_follow_shows_events_and_brings_back_what_was_made(tutelage, server, recipe, tmp_path):
    def machine():
        until = time.monotonic() + 60
        while not all_jobs(server) and time.monotonic() < until:
            time.sleep(0.05)
        job_id = all_jobs(server)[0].id
        move(server, job_id, "starting", "running")
        say(server, job_id, "step", stage="read", step=1, steps=1, loss=2.5)
        make_run(server, job_id)
        move(server, job_id, "succeeded")

    playing = threading.Thread(target=machine)
    playing.start()
    outcome = tutelage("submit", str(recipe), "--follow")
    playing.join()
    assert outcome.code == 0, outcome.err
    assert "read: step 1/1, loss 2.5" in outcome.err
    assert "run folder:" in outcome.out
    run = tmp_path / "runs" / "tiny"
    assert (run / "stages" / "read" / "artifact" / "model.safetensors").read_bytes() == b"weights" * 100
    assert not (run / "stages" / "read" / "checkpoints").exists()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert tutelage("runs", "list", "--json").lines[0][0]["name"] == "tiny"


@pytest.mark.parametrize(("states", "code"), [(("failed",), 1), (("waiting",), 3), (("cancelling", "cancelled"), 4)])
def test_how_a_job_ended_is_the_exit_code(tutelage, server, recipe, states, code):
    job_id = tutelage("submit", str(recipe)).out.strip()
    move(server, job_id, "starting", "running", *states, reason="because")
    for command in (["wait"], ["events", "-f"], ["logs", "-f"]):
        outcome = tutelage("jobs", *command, job_id)
        assert outcome.code == code
        assert "because" in outcome.err
    lines = tutelage("jobs", "events", job_id, "--json").lines
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["data"]["to"] == states[-1]
    assert tutelage("jobs", "events", job_id, "--after", str(len(lines) - 1), "--json").lines == lines[-1:]


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(tutelage, server, recipe, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tutelage_server.cli.following.follow", interrupted)
    outcome = tutelage("submit", str(recipe), "--follow")
    (job,) = all_jobs(server)
    assert outcome.code == 130
    assert f"tutelage jobs events -f {job.id}" in outcome.err
    assert job.state == "queued"


def test_ctrl_c_in_a_fetch_says_how_to_go_on_with_it(tutelage, server, recipe, monkeypatch):
    job_id = tutelage("submit", str(recipe), "--idempotency-key", "one").out.strip()
    make_run(server, job_id)
    move(server, job_id, "starting", "running", "succeeded")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tutelage_server.cli.fetching.fetch_files", interrupted)
    outcome = tutelage("submit", str(recipe), "--idempotency-key", "one", "--follow")
    assert outcome.code == 130
    assert f"tutelage jobs artifacts get {job_id}" in outcome.err


def test_artifacts_are_listed_and_fetched_whole_or_in_part(tutelage, server, recipe, tmp_path):
    job_id = tutelage("submit", str(recipe)).out.strip()
    make_run(server, job_id)
    move(server, job_id, "starting", "running", "succeeded")
    paths = [each["path"] for each in tutelage("jobs", "artifacts", "list", job_id, "--json").lines[0]]
    assert "stages/read/artifact/model.safetensors" in paths
    out = tmp_path / "out"
    part = tutelage("jobs", "artifacts", "get", job_id, "stages/read", "--out", str(out))
    assert part.code == 0, part.err
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["model.safetensors"]
    assert tutelage("jobs", "artifacts", "get", job_id, "stage", "--out", str(out)).code == 2
    first, second = (tutelage("jobs", "artifacts", "get", job_id, "--json").lines[0]["folder"] for _ in range(2))
    assert (first, second) == (str(tmp_path / "runs" / "tiny"), str(tmp_path / "runs" / "tiny-2"))
    assert "stages" in tutelage("jobs", "metrics", job_id, "--json").lines[0]


def test_files_are_put_listed_fetched_and_removed(tutelage, server, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "x"}\n' * 1000)
    stored = tutelage("files", "put", str(file), "--json").lines[0][0]
    assert stored["sent"]
    assert not tutelage("files", "put", str(file), "--json").lines[0][0]["sent"]
    assert stored["id"] in tutelage("files", "list").out
    got = tutelage("files", "get", f"file:{stored['id']}", "--out", str(tmp_path / "back.jsonl"))
    assert got.code == 0, got.err
    assert (tmp_path / "back.jsonl").read_bytes() == file.read_bytes()
    assert tutelage("files", "get", stored["id"], "--out", str(tmp_path / "back.jsonl")).code == 2
    assert tutelage("files", "rm", stored["id"]).code == 2
    removed = tutelage("files", "rm", "file-none", stored["id"], "--yes", "--json")
    assert (removed.code, removed.lines[0]) == (2, {"removed": [stored["id"]]})
    assert tutelage("files", "list", "--json").lines == [[]]


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([0, 3, 4], 4), ([1, 4, 130], 130), ([5, 1], 5)])
def test_of_several_jobs_the_worst_counts(codes, code):
    assert worst(codes) == code


def test_without_a_server_the_recipe_is_checked_and_trained_here(tutelage, recipe, monkeypatch):
    asked = {}
    monkeypatch.setattr("tutelage.api.train", lambda recipe, **options: asked.update(options, recipe=recipe))
    shown = tutelage("submit", str(recipe), "--local", "--dry-run", "--json").lines[0]
    assert shown["estimate"]["peak_gib"] > 0
    refused = tutelage("submit", str(recipe), "--local", "--gpus", "2", "--on", "x")
    assert (refused.code, refused.err.count("needs a server")) == (2, 2)
    assert asked == {}
    tutelage("submit", str(recipe), "--local", "--set", "stages.read.trainer.seed=3")
    assert (asked["recipe"], asked["overrides"]) == (recipe, ["stages.read.trainer.seed=3"])
