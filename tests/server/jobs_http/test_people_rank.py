"""People rank over HTTP: blinded, each in an order of their own, every answer kept when it is acknowledged."""

from __future__ import annotations

import pytest
from job_service import JobService, problems_of, record
from serving import make_key

from tutelage.ranking.desk import Desk, desk_folder
from tutelage.ranking.tasks import Plan, Task


@pytest.fixture
def service(tmp_path):
    with JobService(tmp_path) as made:
        yield made


def task(number, answers=3):
    texts = [f"answer {number}.{each}" for each in range(answers)]
    return Task(
        id=f"t{number}", prompt=f"question {number}", answers=texts, made_by=[f"model-{each}" for each in texts]
    )


def waiting(service, **plan):
    """A job that waits for people, and its desk."""
    job = service.job()
    run = service.run(job, {"run.json": record({"name": "people", "phase": "ranking", "state": "waiting"})})
    fields = {"tasks": [task(number) for number in range(4)], "seats": 2, "overlap": 2, **plan}
    desk = Desk.set_up(desk_folder(run, "people"), Plan(**fields))
    service.become(job, "starting", "running", "waiting", reason="rank 4 questions")
    return job, desk


def ask(service, job, person="ann", **options):
    answer = service.http.get(f"/v1/jobs/{job}/rankings", params={"person": person}, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def say(service, job, person="ann", **fields):
    return service.http.post(f"/v1/jobs/{job}/rankings", json={"person": person, **fields})


def test_a_question_says_nothing_of_who_wrote_the_answers(service):
    job, desk = waiting(service)
    shown = service.http.get(f"/v1/jobs/{job}/rankings", params={"person": "ann"}).text
    assert "model-" not in shown
    assert "made_by" not in shown
    question = ask(service, job)["question"]
    assert set(question["answers"].values()) == set(desk.tasks[question["id"]].answers)


def test_an_order_is_kept_as_it_was_meant(service):
    job, desk = waiting(service)
    done = {}
    for left in (4, 3, 2, 1):
        seen = ask(service, job)
        assert (seen["left"], seen["question"]["number"], seen["question"]["of"]) == (left, 5 - left, 4)
        answers = seen["question"]["answers"]
        done[seen["question"]["id"]] = [answers["b"], answers["c"], answers["a"]]
        answer = say(service, job, question=seen["question"]["id"], order="b c a", seconds=2.5)
        assert answer.status_code == 200, answer.text
    assert answer.json()["question"] is None
    for name, given in desk.said().items():
        ranked = sorted(zip(given["ann"].ranks, desk.tasks[name].answers, strict=True))
        assert [text for _, text in ranked] == done[name]
    assert (answer.json()["given"], answer.json()["wanted"], answer.json()["enough"]) == (4, 8, False)
    for number in range(4):
        question = ask(service, job, "bob")["question"]
        answer = say(service, job, "bob", question=question["id"], order=["bad", "skip", "a=b=c", "a=b c"][number])
    assert answer.json()["enough"]
    assert service.http.post(f"/v1/jobs/{job}/resume").json()["state"] == "queued"


def test_people_see_the_answers_in_orders_of_their_own(service):
    job, _ = waiting(service, tasks=[task(0, answers=8)], seats=5, overlap=5)
    orders = {tuple(ask(service, job, f"p{number}")["question"]["answers"].values()) for number in range(5)}
    assert len(orders) > 1
    assert ask(service, job, "p0") == ask(service, job, "p0")


def test_what_is_sent_again_counts_once_and_what_differs_is_refused(service):
    job, desk = waiting(service)
    question = ask(service, job)["question"]["id"]
    first = say(service, job, question=question, order="a b c")
    assert say(service, job, question=question, order="a b c").json() == first.json()
    other = say(service, job, question=question, order="c b a")
    assert (other.status_code, other.json()["code"]) == (409, "answered_otherwise")
    assert len(desk.said()) == 1
    undone = say(service, job, undo=True)
    assert undone.json()["left"] == 4
    assert say(service, job, question=question, order="c b a").status_code == 200
    say(service, job, undo=True)
    assert "undo" in problems_of(say(service, job, undo=True))


def test_comments_are_kept(service):
    job, desk = waiting(service)
    question = ask(service, job)["question"]["id"]
    assert say(service, job, question=question, comment="odd").json()["left"] == 4
    assert [entry.comment for entry in desk.entries() if entry.kind == "comment"] == ["odd"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"order": "a b"}, "order"),
        ({"order": "a b c d"}, "order"),
        ({"order": "a a b c"}, "order"),
        ({"order": "$(x)"}, "order"),
        ({}, "order"),
        ({"question": "t99", "order": "a b c"}, "question"),
        ({"question": "../x", "order": "a b c"}, "question"),
        ({"person": "../x", "order": "a b c"}, "person"),
        ({"person": "Ann", "order": "a b c"}, "person"),
        ({"stage": "none", "order": "a b c"}, "stage"),
        ({"stage": "../people", "order": "a b c"}, "stage"),
    ],
)
def test_what_is_no_answer_is_refused_at_its_place(service, fields, place):
    job, desk = waiting(service)
    question = ask(service, job)["question"]["id"]
    answer = say(service, job, **{"question": question, **fields})
    assert answer.status_code == 422, answer.text
    assert place in problems_of(answer)
    assert desk.said() == {}
    assert str(service.settings.folder) not in answer.text


def test_who_may_not_rank_is_not_let_in(service):
    job, _ = waiting(service, people=["ann", "bob"])
    answer = service.http.get(f"/v1/jobs/{job}/rankings", params={"person": "eve"})
    assert "person" in problems_of(answer)
    ranks, reads = (
        {"authorization": f"Bearer {make_key(service.store, scopes=[scope])}"} for scope in ("rank", "read")
    )
    assert ask(service, job, headers=ranks)["question"]
    assert service.http.get(f"/v1/jobs/{job}/rankings", params={"person": "ann"}, headers=reads).status_code == 403
    other = service.http.get(f"/v1/jobs/{job}/rankings", params={"person": "ann"}, headers=service.other)
    assert other.status_code == 404


def test_there_is_nothing_to_rank(service):
    job = service.job()
    params = {"params": {"person": "ann"}}
    assert service.http.get(f"/v1/jobs/{job}/rankings", **params).status_code == 422
    service.run(job, {"run.json": record({"state": "running"})})
    answer = service.http.get(f"/v1/jobs/{job}/rankings", **params)
    assert answer.status_code == 422
    assert str(service.settings.folder) not in answer.text
    over, _ = waiting(service)
    service.run(over, {"run.json": record({"name": "people", "phase": "ranking", "state": "succeeded"})})
    assert service.http.get(f"/v1/jobs/{over}/rankings", **params).json()["code"] == "ranking_over"
