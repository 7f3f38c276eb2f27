"""Fine-tuning jobs through OpenAI's own client, taken in by a real check; what runs them is played here."""

from __future__ import annotations

import functools
import json
import threading

import openai
import pytest
from openai_clients import chat_lines, jsonl, lose_replies, no_sleep, openai_client, preference_lines
from serving import client, make_key, make_settings
from tiny_models import write_model

from tutelage.config import parse_yaml as load
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.states import FAILED, RUNNING, STARTING, SUCCEEDED, WAITING, transition
from tutelage_server.store.store import lock_job
from tutelage_server.store.tables import Job

__all__ = ["no_sleep"]

http_names: list[str] = []
"Tenants so far, of which the last is the one that a test is."


@pytest.fixture(scope="module")
def served_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    model = write_model(folder / "tiny", "llama-tied")
    with client(make_settings(folder, openai_models={"tiny": str(model)})) as made:
        yield made


@pytest.fixture
def http(served_once):
    """A tenant of its own for each test: the process that checks recipes takes long to start."""
    store = served_once.app.state.store
    name = f"tenant-{len(http_names)}"
    http_names.append(name)
    before = served_once.headers["authorization"]
    served_once.headers["authorization"] = f"Bearer {make_key(store, tenant=name)}"
    yield served_once
    served_once.headers["authorization"] = before


@pytest.fixture
def api(http):
    return openai_client(http)


@pytest.fixture
def train(api):
    return api.files.create(file=("train.jsonl", chat_lines(40)), purpose="fine-tune").id


def moved(http, job_id, *states, **fields):
    """Play the part of the dispatcher."""
    with http.app.state.store.writing() as session:
        job = lock_job(session, job_id)
        for state in states:
            transition(session, job, state, by="test", **fields)


def hello(api, model):
    return api.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])


def told(http, job_id, kind, **data):
    with http.app.state.store.writing() as session:
        append_event(session, lock_job(session, job_id), kind, data)


def test_a_job_is_created_with_a_recipe_of_what_was_asked_for(api, http, train):
    valid = api.files.create(file=("valid.jsonl", chat_lines(2)), purpose="fine-tune").id
    job = api.fine_tuning.jobs.create(
        model="tiny",
        training_file=train,
        validation_file=valid,
        suffix="my tune",
        seed=7,
        metadata={"team": "blue"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}},
        },
    )
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", "tiny", 7)
    assert (job.training_file, job.validation_file, job.metadata) == (train, valid, {"team": "blue"})
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens, job.error) == (None, None, None, None)
    assert job.result_files == []
    assert job.hyperparameters.model_dump() == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert job.method.supervised.hyperparameters.n_epochs == 2
    assert api.fine_tuning.jobs.retrieve(job.id) == job

    folder = http.app.state.settings.folder / "jobs" / job.id
    recipe = load((folder / "recipe.yaml").read_text())
    (stage,) = recipe["stages"]
    assert stage["phase"] == {"kind": "sft"}
    assert stage["adapter"] == {"kind": "lora"}
    trainer = stage["trainer"]
    assert (trainer["epochs"], trainer["learning_rate"], trainer["seed"]) == (2.0, 1e-4, 7)
    assert trainer["tokens_per_step"] == pytest.approx(4 * len(chat_lines(40).replace(b" ", b"")) / 40 / 4, rel=0.15)
    assert (folder / stage["data"]["train"]).read_bytes() == chat_lines(40)
    assert (folder / stage["data"]["eval"]).read_bytes() == chat_lines(2)


def test_preferences_are_learnt_by_dpo(api, http):
    pairs = api.files.create(file=("pairs.jsonl", preference_lines(12)), purpose="fine-tune").id
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}}
    job = api.fine_tuning.jobs.create(model="tiny", training_file=pairs, method=method)
    assert job.status == "queued"
    assert job.method.dpo.hyperparameters.beta == 0.3
    assert job.method.dpo.hyperparameters.n_epochs == 3
    recipe = load((http.app.state.settings.folder / "jobs" / job.id / "recipe.yaml").read_text())
    assert recipe["stages"][0]["phase"] == {"kind": "dpo", "beta": 0.3}


@pytest.mark.parametrize(
    ("data", "method", "code"),
    [
        (chat_lines(3), "supervised", "invalid_n_examples"),
        (chat_lines(12), "dpo", "invalid_training_file"),
        (jsonl([{"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}] * 12), "supervised", "invalid_training_file"),
        # only the check itself sees this one: the two answers are the same
        (
            jsonl([{**json.loads(preference_lines(1)), "non_preferred_output": [{"role": "assistant", "content": "it is 1"}]}] * 12),
            "dpo",
            "invalid_training_file",
        ),
    ],
)  # fmt: skip
def test_bad_data_arrives_as_a_job_that_failed(api, data, method, code):
    file = api.files.create(file=("bad.jsonl", data), purpose="fine-tune").id
    job = api.fine_tuning.jobs.create(model="tiny", training_file=file, method={"type": method})
    assert job.status == "failed"
    assert (job.error.code, job.error.param) == (code, "training_file")
    assert job.finished_at is not None
    assert job.fine_tuned_model is None
    events = api.fine_tuning.jobs.list_events(job.id).data
    assert events[0].level == "error"
    assert job.error.message in events[0].message


def test_a_job_that_failed_by_its_data_has_nothing_to_be_tried_again(api, http):
    file = api.files.create(file=("bad.jsonl", chat_lines(3)), purpose="fine-tune").id
    job = api.fine_tuning.jobs.create(model="tiny", training_file=file)
    answer = http.post(f"/v1/jobs/{job.id}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_retry")
    assert "must have at least 10 examples" in answer.json()["problems"][0]["fix"]
    for path in ("", "/events", "/log", "/metrics", "/artifacts"):
        assert http.get(f"/v1/jobs/{job.id}{path}").status_code == 200


def test_what_can_not_be_asked_for_is_refused(api, train):
    create = api.fine_tuning.jobs.create
    with pytest.raises(openai.NotFoundError, match="models here are: tiny") as unknown:
        create(model="gpt-9", training_file=train)
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    for asked, param in (
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations[0]"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            create(**{"model": "tiny", "training_file": train, **asked})
        assert caught.value.param == param, asked
    other = api.files.create(file=("x.jsonl", chat_lines(12)), purpose="user_data").id
    with pytest.raises(openai.BadRequestError, match="purpose fine-tune"):
        create(model="tiny", training_file=other)
    assert list(api.fine_tuning.jobs.list()) == []


def test_an_answer_that_was_lost_trains_once(api, http, train, no_sleep, monkeypatch):
    lose_replies(http, 2, monkeypatch)
    job = openai_client(http, retries=2).fine_tuning.jobs.create(model="tiny", training_file=train)
    assert [each.id for each in api.fine_tuning.jobs.list()] == [job.id]
    assert api.fine_tuning.jobs.create(model="tiny", training_file=train).id == job.id
    assert api.fine_tuning.jobs.create(model="tiny", training_file=train, suffix="other").id != job.id
    assert len(list((http.app.state.settings.folder / "jobs").glob(f"{job.id}*"))) == 1


def test_a_job_that_came_to_nothing_is_not_taken_for_a_new_one(api, http, train):
    first = api.fine_tuning.jobs.create(model="tiny", training_file=train)
    api.fine_tuning.jobs.cancel(first.id)
    second = api.fine_tuning.jobs.create(model="tiny", training_file=train)
    assert second.id != first.id
    moved(http, second.id, STARTING, FAILED, reason="no power")
    assert api.fine_tuning.jobs.create(model="tiny", training_file=train).id not in (first.id, second.id)


def test_a_key_of_the_callers_own_is_obeyed(api, train):
    headers = {"Idempotency-Key": "mine"}
    asked = {"model": "tiny", "training_file": train, "extra_headers": headers}
    job = api.fine_tuning.jobs.create(**asked)
    api.fine_tuning.jobs.cancel(job.id)
    assert api.fine_tuning.jobs.create(**asked).id == job.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        api.fine_tuning.jobs.create(**asked, suffix="other")
    assert caught.value.code == "idempotency_key_reused"


def test_several_at_once_make_one_job(api, train):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(api.fine_tuning.jobs.create(model="tiny", training_file=train).id))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1
    assert [job.id for job in api.fine_tuning.jobs.list()] == made[:1]


def test_jobs_are_paused_resumed_and_cancelled(api, http, train):
    jobs = api.fine_tuning.jobs
    job = jobs.create(model="tiny", training_file=train)
    assert jobs.pause(job.id).status == "paused"
    assert jobs.resume(job.id).status == "queued"
    moved(http, job.id, STARTING)
    assert jobs.retrieve(job.id).status == "queued"
    moved(http, job.id, RUNNING)
    assert jobs.retrieve(job.id).status == "running"
    moved(http, job.id, WAITING)
    assert jobs.retrieve(job.id).status == "running"
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError) as caught:
        openai_client(http, retries=2).fine_tuning.jobs.resume(job.id)
    assert caught.value.response.headers["x-should-retry"] == "false"
    for ask in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            list(ask("job-none"))


def test_events_are_told_in_pages_the_newest_first(api, http, train):
    job = api.fine_tuning.jobs.create(model="tiny", training_file=train)
    moved(http, job.id, STARTING, RUNNING)
    told(http, job.id, "step", step=1, steps=9, loss=2.5)
    told(http, job.id, "eval", step=1, eval_loss=2.25)
    told(http, job.id, "notice", text="a word")
    events = list(api.fine_tuning.jobs.list_events(job.id, limit=2))
    assert [event.message for event in events] == [
        "a word",
        "Step 1: validation loss=2.250",
        "Step 1/9: training loss=2.500",
        "Fine-tuning job started",
        "Fine-tuning job is starting",
        "Created fine-tuning job",
    ]
    assert [event.type for event in events[:3]] == ["message", "metrics", "metrics"]
    assert events[2].data == {"step": 1, "total_steps": 9, "train_loss": 2.5}
    assert [event.level for event in events[:2]] == ["warn", "info"]
    assert len({event.id for event in events}) == 6
    assert all(event.object == "fine_tuning.job.event" for event in events)


def test_jobs_are_listed_in_pages_and_by_metadata(api, http, train):
    made = [api.fine_tuning.jobs.create(model="tiny", training_file=train, metadata={"n": str(n)}).id for n in range(3)]
    assert [job.id for job in api.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in api.fine_tuning.jobs.list(metadata={"n": "1"})] == [made[1]]
    store = http.app.state.store
    other = openai_client(http, key=make_key(store, tenant=f"{http_names[-1]}-other"))
    assert list(other.fine_tuning.jobs.list()) == []
    with pytest.raises(openai.NotFoundError):
        other.fine_tuning.jobs.cancel(made[0])
    with pytest.raises(openai.BadRequestError) as caught:
        other.fine_tuning.jobs.create(model="tiny", training_file=train)
    assert caught.value.param == "training_file"
    with store.reading() as session:
        assert session.get(Job, made[0]).state == "queued"


def test_a_finished_job_names_its_model_its_tokens_and_its_results(api, http, train):
    job = api.fine_tuning.jobs.create(model="tiny", training_file=train, suffix="Äh/oh")
    run = http.app.state.settings.folder / "jobs" / job.id / "run"
    checkpoint = run / "stages" / "tune" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    events = [
        {"event": "stage_started", "stage": "tune", "steps": 2},
        {"event": "step", "stage": "tune", "step": 1, "loss": 2.0, "tokens": 30},
        {"event": "eval", "stage": "tune", "step": 1, "eval_loss": 1.75},
        {"event": "step", "stage": "tune", "step": 2, "loss": 1.5, "tokens": 40},
    ]
    (run / "events.jsonl").write_bytes(jsonl(events))
    stage = {"name": "tune", "phase": "sft", "adapter": "lora", "state": "succeeded", "artifact": "stages/tune/adapter"}
    (run / "run.json").write_text(json.dumps({"name": "fine-tune", "stages": [stage]}))
    (run / "stages" / "tune" / "adapter").mkdir()
    (listed,) = api.fine_tuning.jobs.checkpoints.list(job.id)
    moved(http, job.id, STARTING, RUNNING, SUCCEEDED)

    done = api.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.trained_tokens) == ("succeeded", 70)
    assert done.fine_tuned_model == f"ft:tiny:{http_names[-1]}:h-oh:{job.id[-12:]}"
    assert done.finished_at >= done.created_at
    (results,) = done.result_files
    assert api.files.retrieve(results).purpose == "fine-tune-results"
    assert api.files.content(results).text.splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,2.0,,1.75,",
        "2,1.5,,,",
    ]
    assert api.files.retrieve(results).bytes == len(api.files.content(results).read())
    assert (listed.step_number, listed.metrics.train_loss, listed.metrics.full_valid_loss) == (2, 1.5, 1.75)
    assert listed.fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-2"

    assert [model.id for model in api.models.list()] == ["tiny", done.fine_tuned_model]
    assert api.models.retrieve(done.fine_tuned_model).object == "model"
    other = openai_client(http, key=make_key(http.app.state.store, tenant=f"{http_names[-1]}-other"))
    assert [model.id for model in other.models.list()] == ["tiny"]
    for ask in (
        *(functools.partial(hello, api, f"{done.fine_tuned_model}:ckpt-step-{step}") for step in ("3", "x")),
        functools.partial(hello, other, done.fine_tuned_model),
        lambda: other.models.retrieve(done.fine_tuned_model),
        lambda: other.models.delete(done.fine_tuned_model),
        lambda: other.files.content(results),
        lambda: api.models.retrieve("ft:org/name"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.PermissionDeniedError):
        api.models.delete("tiny")
    assert api.models.delete(done.fine_tuned_model).deleted
    assert not checkpoint.exists()
    assert [model.id for model in api.models.list()] == ["tiny"]
    assert api.fine_tuning.jobs.retrieve(job.id).trained_tokens == 70
