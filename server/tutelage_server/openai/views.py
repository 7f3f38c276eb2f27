"""How jobs, their events, checkpoints and models look to OpenAI's clients."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tutelage.errors import TutelageError
from tutelage.runs.folder import RunFolder
from tutelage.runs.history import StageHistory, read_history
from tutelage_server.jobs.states import (
    CANCELLED,
    CANCELLING,
    FAILED,
    PAUSED,
    PAUSING,
    QUEUED,
    RUNNING,
    STARTING,
    SUCCEEDED,
    TERMINAL,
    WAITING,
)
from tutelage_server.openai.recipes import STAGE
from tutelage_server.openai.schemas import (
    Checkpoint,
    CheckpointMetrics,
    FineTuningEvent,
    FineTuningJob,
    JobError,
    Model,
    OpenAIFile,
)
from tutelage_server.settings import Settings
from tutelage_server.store.tables import Event, Job

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
STATUSES: dict[str, Status] = {
    QUEUED: "queued",
    STARTING: "queued",
    RUNNING: "running",
    WAITING: "running",
    PAUSING: "running",
    PAUSED: "paused",
    CANCELLING: "running",
    SUCCEEDED: "succeeded",
    FAILED: "failed",
    CANCELLED: "cancelled",
}
RESULTS = "file-results-"
"How ids of result files begin, which are made of a job's figures when they are read; a job's own hex digits follow."
_STATES = {
    QUEUED: "Fine-tuning job is queued again",
    STARTING: "Fine-tuning job is starting",
    RUNNING: "Fine-tuning job started",
    WAITING: "Fine-tuning job waits",
    PAUSING: "Fine-tuning job is pausing",
    PAUSED: "Fine-tuning job paused",
    CANCELLING: "Fine-tuning job is being cancelled",
    SUCCEEDED: "The job has successfully completed",
    FAILED: "Fine-tuning job failed",
    CANCELLED: "Fine-tuning job cancelled",
}
"What events say of states."
_COLUMNS = {
    "train_loss": "loss",
    "train_accuracy": "token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_token_accuracy",
}
"Columns of result files, and what the run calls them."


def name_prefix(base: str, tenant: str, suffix: str | None) -> str:
    """How the name of what a job makes begins: `ft:BASE:TENANT:SUFFIX`; nothing in it needs quoting in an address."""
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-") for word in (base, tenant, suffix or "")]
    return ":".join(["ft", *words])


def tuned_name(job: Job) -> str:
    """The name of what a job makes."""
    return f"{(job.openai or {})['prefix']}:{short_id(job.id)}"


def short_id(job_id: str) -> str:
    """The last digits of a job's id, which are random."""
    return job_id[-12:]


def unix(at: datetime) -> int:
    """Seconds since 1970."""
    return int(at.timestamp())


def run_folder(settings: Settings, job_id: str) -> Path:
    """The folder of a job's run."""
    return settings.folder / "jobs" / job_id / "run"


def show_job(job: Job, settings: Settings) -> FineTuningJob:
    """A job of an OpenAI client."""
    asked: dict[str, Any] = job.openai or {}
    succeeded = job.state == SUCCEEDED
    chosen = asked["hyperparameters"]
    common = {name: value for name, value in chosen.items() if name != "beta"}
    finish = job.progress.get("expected_end") if job.state == RUNNING else None
    return FineTuningJob(
        id=job.id,
        created_at=unix(job.created_at),
        error=_error(job, asked),
        fine_tuned_model=tuned_name(job) if succeeded else None,
        finished_at=unix(job.finished_at) if job.finished_at and job.state in TERMINAL else None,
        hyperparameters=common,
        model=asked["model"],
        organization_id=job.tenant_id,
        result_files=[results_id(job.id)] if succeeded else [],
        seed=asked["seed"],
        status=STATUSES[job.state],
        trained_tokens=_history(run_folder(settings, job.id)).tokens if succeeded else None,
        training_file=asked["training_file"],
        validation_file=asked["validation_file"],
        method={"type": asked["method"], asked["method"]: {"hyperparameters": chosen}},
        metadata=asked["metadata"],
        integrations=asked["integrations"],
        estimated_finish=finish if isinstance(finish, int) else None,
    )


def _error(job: Job, asked: dict[str, Any]) -> JobError | None:
    if job.state != FAILED:
        return None
    if error := asked.get("error"):
        return JobError(**error)
    return JobError(code="training_failed", message=job.reason or "the run failed; see its events", param=None)


def show_event(event: Event) -> FineTuningEvent:
    """An event of a job."""
    level, message, data = _told(event)
    return FineTuningEvent(
        id=f"ftevent-{event.job_id.rpartition('-')[2]}-{event.number:08d}",
        created_at=unix(event.at),
        level=level,
        message=message,
        type="metrics" if event.kind in ("step", "eval") else "message",
        data=data,
    )


def event_number(event_id: str) -> int | None:
    """The number of the event that an id names."""
    digits = event_id.rpartition("-")[2]
    return int(digits) if event_id.startswith("ftevent-") and re.fullmatch(r"[0-9]{8,18}", digits) else None


def _told(event: Event) -> tuple[Literal["info", "warn", "error"], str, dict[str, Any]]:
    data = event.data
    if event.kind == "step":
        metrics = {"step": data.get("step"), "total_steps": data.get("steps"), "train_loss": data.get("loss")}
        return "info", f"Step {data.get('step')}/{data.get('steps')}: training loss={_round(data.get('loss'))}", metrics
    if event.kind == "eval":
        metrics = {"step": data.get("step"), "valid_loss": data.get("eval_loss")}
        return "info", f"Step {data.get('step')}: validation loss={_round(data.get('eval_loss'))}", metrics
    if event.kind == "checkpoint":
        return "info", f"Checkpoint created at step {data.get('step')}", {"step": data.get("step")}
    if event.kind in ("notice", "warning"):
        return "warn", str(data.get("text", "")), {}
    if event.kind == "error":
        fix = f"; {data['fix']}" if data.get("fix") else ""
        return "error", f"{data.get('wrong', 'the run failed')}{fix}", {}
    if event.kind == "state":
        level: Literal["info", "error"] = "error" if data.get("to") == FAILED else "info"
        said = "Created fine-tuning job" if not data.get("from") else _STATES.get(str(data.get("to")), "")
        reason = str(data.get("reason") or "")
        return level, f"{said}: {reason}" if reason else said, {}
    return "info", event.kind.replace("_", " ").capitalize(), {}


def _round(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "unknown"


def show_checkpoint(job: Job, step: int, at: int, history: StageHistory) -> Checkpoint:
    """A checkpoint of a job, with what was measured up to it."""
    made = history.steps.get(step, {})
    evaluated = max((known for known in history.evals if known <= step), default=None)
    valid = history.evals.get(evaluated, {}) if evaluated is not None else {}
    metrics = CheckpointMetrics(
        step=step,
        train_loss=made.get("loss"),
        train_mean_token_accuracy=made.get("token_accuracy"),
        full_valid_loss=valid.get("eval_loss"),
        full_valid_mean_token_accuracy=valid.get("eval_token_accuracy"),
    )
    return Checkpoint(
        id=f"ftckpt-{short_id(job.id)}-{step:08d}",
        created_at=at,
        fine_tuned_model_checkpoint=f"{tuned_name(job)}:ckpt-step-{step}",
        fine_tuning_job_id=job.id,
        metrics=metrics,
        step_number=step,
    )


def checkpoints_of(job: Job, settings: Settings) -> list[Checkpoint]:
    """The checkpoints of a job that are still there, newest first."""
    run = run_folder(settings, job.id)
    found = [*(run / "stages" / STAGE / "checkpoints").glob("step-*")]
    if not found:
        return []
    history = _read(run)
    steps = {int(folder.name.removeprefix("step-")): folder for folder in found if folder.name[5:].isdigit()}
    return [show_checkpoint(job, step, int(steps[step].stat().st_mtime), history) for step in sorted(steps)[::-1]]


def results_id(job_id: str) -> str:
    """The id of a job's result file."""
    return RESULTS + job_id.rpartition("-")[2]


def results(job: Job, settings: Settings) -> bytes:
    """A job's figures as CSV: a row a step."""
    history = _history(run_folder(settings, job.id))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", *_COLUMNS])
    for step in sorted({*history.steps, *history.evals}):
        row = {**history.steps.get(step, {}), **history.evals.get(step, {})}
        writer.writerow([step, *(row.get(name, "") for name in _COLUMNS.values())])
    return out.getvalue().encode()


def show_results(job: Job, settings: Settings) -> OpenAIFile:
    """A job's result file."""
    assert job.finished_at is not None
    return OpenAIFile(
        id=results_id(job.id),
        bytes=len(results(job, settings)),
        created_at=unix(job.finished_at),
        filename="step_metrics.csv",
        purpose="fine-tune-results",
        status="processed",
    )


def show_model(job: Job) -> Model:
    """What a job made."""
    made = job.finished_at or job.created_at
    return Model(id=tuned_name(job), created=unix(made), owned_by=job.tenant_id)


def base_models(settings: Settings) -> Iterable[Model]:
    """What the operator offers."""
    return (Model(id=name, created=0, owned_by="operator") for name in sorted(settings.openai_models))


@lru_cache(maxsize=256)
def _history(run: Path) -> StageHistory:
    """The history of a run that has ended."""
    return _read(run)


def _read(run: Path) -> StageHistory:
    try:
        return read_history(RunFolder.open(run)).get(STAGE) or StageHistory(STAGE)
    except TutelageError:  # its folder was removed, which makes its figures unknown and nothing else
        return StageHistory(STAGE)
