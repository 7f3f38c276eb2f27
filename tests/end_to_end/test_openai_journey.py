"""OpenAI's own client on a real server: a file is sent, a model tuned, its events read, and the tuned model asked."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import openai
import pytest
from openai_clients import jsonl, openai_client, preference_lines
from serving import children, served
from tiny_models import write_model

LEARNT = "sat on the mat"
HI = [{"role": "user", "content": "what is 3 + 1?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai-journey")
    model = write_model(folder / "tiny", "llama-tied")
    with served(folder, openai_models={"tiny": str(model)}) as made:
        yield made


@pytest.fixture
def api(server):
    with server.client() as http:
        yield openai_client(http, retries=2)


def examples(count):
    """All of them have one answer."""
    asked = ({"role": "user", "content": f"what is {number} + 1?"} for number in range(count))
    return jsonl({"messages": [turn, {"role": "assistant", "content": LEARNT}]} for turn in asked)


def ended(api, job_id, seconds=240):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = api.fine_tuning.jobs.retrieve(job_id)
        if job.finished_at is not None:
            return job
        time.sleep(0.5)
    raise AssertionError(f"{job_id} is {job.status}: {api.fine_tuning.jobs.list_events(job_id).data}")


@pytest.mark.slow
def test_from_a_file_to_a_chat_with_the_tuned_model(api, server):
    train = api.files.create(file=("train.jsonl", examples(48)), purpose="fine-tune")
    valid = api.files.create(file=("valid.jsonl", examples(4)), purpose="fine-tune")
    job = api.fine_tuning.jobs.create(
        model="tiny",
        training_file=train.id,
        validation_file=valid.id,
        suffix="sums",
        seed=3,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 8, "batch_size": 8, "learning_rate_multiplier": 100}},
        },
    )
    assert job.status in ("validating_files", "queued", "running")
    done = ended(api, job.id)
    assert done.status == "succeeded", done.error
    assert done.trained_tokens > 1000

    events = list(api.fine_tuning.jobs.list_events(job.id))
    losses = [event.data["train_loss"] for event in events[::-1] if "train_loss" in (event.data or {})]
    assert losses[-1] < 0.5 * losses[0]
    assert events[0].message == "The job has successfully completed"
    rows = api.files.content(done.result_files[0]).text.splitlines()
    assert len(rows) == len(losses) + 1

    tuned = done.fine_tuned_model
    assert tuned in [model.id for model in api.models.list()]
    asked = {"messages": HI, "temperature": 0, "max_tokens": 12}
    said = api.chat.completions.create(model=tuned, **asked)
    assert said.choices[0].message.content == LEARNT
    assert said.choices[0].finish_reason == "stop"
    chunks = api.chat.completions.create(model=tuned, **asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == LEARNT
    base = api.chat.completions.create(model="tiny", **asked)
    assert base.choices[0].message.content != LEARNT

    last = api.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    assert last.step_number == len(losses)
    checkpoint = api.chat.completions.create(model=last.fine_tuned_model_checkpoint, **asked)
    assert checkpoint.choices[0].message.content == LEARNT
    assert api.models.delete(tuned).deleted
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model=tuned, **asked)


@pytest.mark.slow
def test_preferences_are_learnt_and_a_running_job_is_cancelled(api):
    pairs = api.files.create(file=("pairs.jsonl", preference_lines(40)), purpose="fine-tune")
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 20}}}
    job = api.fine_tuning.jobs.create(model="tiny", training_file=pairs.id, method=method)
    method["dpo"]["hyperparameters"] = {"n_epochs": 50, "batch_size": 1}
    long = api.fine_tuning.jobs.create(model="tiny", training_file=pairs.id, method=method)
    assert ended(api, job.id).status == "succeeded"
    api.fine_tuning.jobs.cancel(long.id)
    done = ended(api, long.id)
    assert (done.status, done.fine_tuned_model) == ("cancelled", None)


@pytest.mark.slow
def test_who_leaves_a_stream_ends_the_work_on_it_and_a_killed_server_leaves_no_process(api, server):
    with api.chat.completions.create(model="tiny", messages=HI, max_tokens=200, seed=1, stream=True) as stream:
        next(iter(stream))
    assert api.chat.completions.create(model="tiny", messages=HI, max_tokens=2).choices
    answering = [
        pid for pid in children(server.pid) if b"openai.answering" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(answering) >= 1
    server.kill()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in answering) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in answering)
    with pytest.raises(openai.APIConnectionError), httpx.Client(trust_env=False) as http:
        openai_client(http, key="tut_x").models.list()
