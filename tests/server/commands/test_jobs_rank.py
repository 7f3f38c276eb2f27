"""`tutelage jobs rank`: a person's answers reach the server's desk the moment they are given."""

from __future__ import annotations

import io

import pytest

from tutelage.ranking.desk import Desk, desk_folder
from tutelage.ranking.tasks import Plan, Task, task_id
from tutelage.runs.folder import RunFolder
from tutelage_server.jobs.launching import job_folder
from tutelage_server.store.tables import Job, Key, Tenant, new_id

ANSWERS = ["first answer", "second answer", "third \x1b[2J answer"]
STAGES = [{"name": "rank", "phase": {"kind": "ranking"}}]


@pytest.fixture
def waiting(server):
    """A job that waits for people to rank, and the desk that it waits at."""
    with server.store.writing() as session:
        tenant = session.query(Tenant).filter_by(name=server.tenant).one()
        key = session.query(Key).filter_by(tenant_id=tenant.id).one()
        fields = {"tenant_id": tenant.id, "key_id": key.id, "name": "asks", "state": "waiting", "launcher": "local"}
        job = Job(id=new_id("job"), recipe={"name": "asks", "model": "m", "stages": STAGES}, **fields)
        session.add(job)
    run = RunFolder.create(job_folder(server.settings, job.id) / "run", "asks", job.recipe)
    run.update_stage("rank", state="waiting")
    tasks = [
        Task(id=task_id(f"prompt {number}", ANSWERS), prompt=f"prompt {number}", answers=ANSWERS, made_by=["x"] * 3)
        for number in range(3)
    ]
    return job.id, Desk.set_up(desk_folder(run.path, "rank"), Plan(tasks=tasks))


def types(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_what_is_typed_is_judged_and_mistakes_are_sentences(tutelage, waiting, monkeypatch):
    job, desk = waiting
    types(monkeypatch, "a b=c", "? odd question", "a a a", "undo", "bad", "skip", "c b a")
    outcome = tutelage("jobs", "rank", job, "--person", "ann")
    assert outcome.code == 0, outcome.err
    assert desk.given() == 3
    assert "\x1b" not in outcome.out
    assert outcome.out.count("saved") == 4
    assert "noted" in outcome.out
    assert "taken back" in outcome.out
    assert f"go on with: tutelage jobs resume {job}" in outcome.out


def test_who_stops_comes_back_to_what_is_left(tutelage, waiting, monkeypatch):
    job, desk = waiting
    types(monkeypatch, "a b c", "quit")
    assert "2 of yours are left; 1 of 3 judgements are in" in tutelage("jobs", "rank", job, "--person", "ann").out
    types(monkeypatch, "a b c", "a b c")
    lines = tutelage("jobs", "rank", job, "--person", "ann", "--json").lines
    assert [line["question"]["prompt"] for line in lines if "question" in line] == [
        task.prompt for task in desk.assigned("ann")
    ][1:]
    assert desk.given() == 3


def test_a_job_that_asks_nothing_says_so(tutelage, waiting, server):
    outcome = tutelage("jobs", "rank", "job-none", "--person", "ann")
    assert (outcome.code, "job-none" in outcome.err) == (2, True)
