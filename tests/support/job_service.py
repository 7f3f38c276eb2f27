"""An application in this process with files and jobs, for tests of what is said about jobs over HTTP."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from serving import client, make_key, make_settings, make_store

from tutelage.errors import Problem
from tutelage_server.jobs.checking import Ask, Checked, Checker
from tutelage_server.jobs.events import append_event
from tutelage_server.jobs.launching import job_folder
from tutelage_server.jobs.states import transition
from tutelage_server.store.store import lock_job
from tutelage_server.store.tables import Job

TEXT = "\n\n".join(f"The {name} sat on the mat and looked at the moon." for name in ("cat", "dog", "owl", "fox") * 8)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}


def recipe(data: str, **trainer: Any) -> dict[str, Any]:
    """A recipe that makes a tiny model of its own: nothing is fetched for it."""
    phase = {"kind": "pretrain", "shape": SHAPE, "vocabulary": 300}
    settings = {"max_steps": 2, "max_length": 32, "tokens_per_step": 64, "accelerator": "cpu", "rehearsal": False}
    stage = {"name": "learn", "phase": phase, "adapter": "full", "data": data, "trainer": {**settings, **trainer}}
    return {"name": "tiny", "model": "new", "stages": [stage]}


class NoChecks(Checker):
    """Answers at once what it was told to; notes what it was asked."""

    def __init__(self, answer: Checked | None = None) -> None:
        super().__init__()
        self.answer = answer or Checked()
        self.asked: list[dict[str, Any]] = []

    def check(self, ask: Ask, digest: str) -> Checked:
        from tutelage.config import read_file

        self.asked.append(read_file(Path(ask.folder) / ask.recipe))
        return self.answer


class JobService:
    """One application, its store, and clients of two tenants."""

    def __init__(self, tmp_path: Path, checker: Checker | None = None, **settings: Any) -> None:
        self.settings = make_settings(tmp_path, **settings)
        self.store = make_store(tmp_path)
        self.checker = checker or NoChecks()
        self.http = client(self.settings, self.store)
        self.submitting = self.http.app.dependencies["submitting"].dependency()
        if checker is not None or settings.pop("fake", True):
            self.submitting.drafting.checker = self.checker
        self.other = {"authorization": f"Bearer {make_key(self.store, 'two')}"}

    def __enter__(self) -> JobService:
        self.http.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.http.__exit__(*error)
        self.checker.close()
        self.store.close()

    def upload(self, text: str | bytes, name: str = "story.txt", headers: Any = None) -> str:
        """Store a file; what a recipe calls it."""
        data = text.encode() if isinstance(text, str) else text
        body = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        made = self.http.post("/v1/files", json=body, headers=headers).json()
        if made["status"] != "processed":
            sending = {"upload-offset": "0", "content-type": "application/offset+octet-stream", **(headers or {})}
            sent = self.http.patch(f"/v1/files/{made['id']}/content", content=data, headers=sending)
            assert sent.status_code == 204, sent.text
        return f"file:{made['id']}"

    def submit(self, **fields: Any) -> Any:
        """The answer to a submission, by default of a tiny recipe."""
        headers = fields.pop("headers", None)
        fields.setdefault("recipe", recipe("file:none") if "recipe" in fields else recipe(self.upload(TEXT)))
        return self.http.post("/v1/jobs", json=fields, headers=headers)

    def job(self, **fields: Any) -> str:
        """The id of a new job."""
        made = self.submit(**fields)
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def row(self, job_id: str) -> Job:
        with self.store.reading() as session:
            return session.get_one(Job, job_id)

    def become(self, job_id: str, *states: str, **fields: Any) -> None:
        """Move a job through states."""
        with self.store.writing() as session:
            for state in states:
                job = lock_job(session, job_id)
                assert job is not None
                transition(session, job, state, by="run", **(fields if state == states[-1] else {}))

    def tell(self, job_id: str, kind: str = "step", **data: Any) -> None:
        """Append an event to a job."""
        with self.store.writing() as session:
            job = lock_job(session, job_id)
            assert job is not None
            append_event(session, job, kind, data)

    def folder(self, job_id: str) -> Path:
        return job_folder(self.settings, job_id)

    def run(self, job_id: str, files: dict[str, str | bytes] | None = None) -> Path:
        """Make files below a job's run folder."""
        folder = self.folder(job_id) / "run"
        folder.mkdir(exist_ok=True)
        for path, content in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder


def record(*stages: dict[str, Any], state: str = "running") -> str:
    """A run's `run.json`."""
    from tutelage.runs.folder import now

    fields = {"name": "tiny", "created": now(), "tutelage": "0", "versions": {}, "platform": "test", "base": "/old"}
    made = [{"name": "learn", "phase": "pretrain", "adapter": "full", **stage} for stage in stages]
    return json.dumps({**fields, "state": state, "stages": made})


def problems_of(answer: Any) -> dict[str, str]:
    """The problems of a refusal by their places."""
    return {each["place"]: each["wrong"] for each in answer.json()["problems"]}


def problem(place: str = "model", wrong: str = "is missing") -> Checked:
    """A check that found one problem."""
    return Checked(problems=[Problem(place=place, wrong=wrong)])
