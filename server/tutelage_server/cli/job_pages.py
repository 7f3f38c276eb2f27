"""What a person reads of jobs: a table of several, a page of one."""

from __future__ import annotations

from typing import Any

import click

from tutelage.cli.output import table
from tutelage.runs.words import duration, number, size
from tutelage_server.cli.calling import when

Job = dict[str, Any]


def print_jobs(jobs: list[Job]) -> None:
    """A line a job."""
    rows = [
        [job["id"], job["name"], job["state"], progress_of(job), job["launcher"], when(job["created_at"]), spent(job)]
        for job in jobs
    ]
    columns = ["job", "name", "state", "progress", "on", "created (UTC)", "time"]
    table(columns, rows, right={"time"}, folds={"job", "name"})


def print_job(job: Job) -> None:
    """Everything of one job that people ask for."""
    click.secho(f"{job['name']} ({job['id']}): {job['state']}", bold=True)
    if job.get("reason"):
        click.echo(job["reason"])
    facts = [
        ("progress", progress_of(job)),
        ("on", _where(job)),
        ("priority", str(job["priority"]) if job.get("priority") else ""),
        ("after", ", ".join(job.get("after") or [])),
        ("sweep", job.get("sweep") or ""),
        ("goes on from", job.get("retry_of") or ""),
        ("labels", ", ".join(f"{name}={value}" for name, value in (job.get("labels") or {}).items())),
        ("attempt", _attempts(job)),
        ("created", when(job["created_at"])),
        ("started", when(job.get("started_at")) if job.get("started_at") else ""),
        ("finished", when(job.get("finished_at")) if job.get("finished_at") else ""),
        ("time", spent(job)),
        ("cost", f"${job['usd']:,.2f}" if job.get("usd") else ""),
    ]
    for name, value in facts:
        if value and value != "–":
            click.echo(f"{name}: {value}")
    for command in next_commands(job):
        click.echo(f"  {command}")


def next_commands(job: Job) -> list[str]:
    """What can be done with a job in its state."""
    name, state = job["id"], job["state"]
    if state == "succeeded":
        return [f"tutelage jobs artifacts get {name}", f"tutelage jobs metrics {name}"]
    if state == "failed":
        return [f"tutelage jobs logs {name}", f"tutelage jobs retry {name}"]
    if state == "waiting":
        return [f"tutelage jobs rank {name}", f"tutelage jobs resume {name}"]
    if state == "paused":
        return [f"tutelage jobs resume {name}", f"tutelage jobs cancel {name}"]
    if state == "cancelled":
        return [f"tutelage jobs logs {name}", f"tutelage jobs retry {name}"]
    return [f"tutelage jobs events -f {name}", f"tutelage jobs logs -f {name}", f"tutelage jobs cancel {name}"]


def progress_of(job: Job) -> str:
    """`tune 40/120, loss 1.23`."""
    told = job.get("progress") or {}
    parts = []
    if told.get("step"):
        steps = f"/{told['steps']}" if told.get("steps") else ""
        parts.append(f"{told.get('stage', '')} {told['step']}{steps}".strip())
    if isinstance(told.get("loss"), int | float):
        parts.append(f"loss {number(told['loss'])}")
    return ", ".join(parts) or "–"


def spent(job: Job) -> str:
    """How long a job has run, or ran."""
    from datetime import UTC, datetime

    if not job.get("started_at"):
        return "–"
    until = datetime.fromisoformat(job["finished_at"]) if job.get("finished_at") else datetime.now(UTC)
    return duration(max(0.0, (until - datetime.fromisoformat(job["started_at"])).total_seconds()))


def print_artifacts(artifacts: list[dict[str, Any]]) -> None:
    """A line a file."""
    rows = [[each["path"], size(each["bytes"]), each["sha256"][:12]] for each in artifacts]
    table(["file", "size", "sha256"], rows, right={"size"}, folds={"file"})


def print_metrics(metrics: dict[str, Any]) -> None:
    """The figures that each stage ended with, or reached last."""
    rows = []
    for stage in metrics["stages"]:
        ended = stage["metrics"]
        last = {name: points[-1][1] for name, points in stage["series"].items() if points and name not in ended}
        rows += [[stage["name"], name, number(value)] for name, value in {**ended, **last}.items()]
    table(["stage", "metric", "value"], rows, right={"value"})


def _where(job: Job) -> str:
    wanted = job.get("resources") or {}
    names = {"nodes": "nodes", "gpus": "GPUs", "cpus": "cores"}
    parts = [f"{shown}: {wanted[name]}" for name, shown in names.items() if wanted.get(name)]
    return ", ".join([job["launcher"], *parts])


def _attempts(job: Job) -> str:
    attempt = job.get("attempt") or 0
    again = f" ({job['retries']} of {job.get('max_retries')} retries)" if job.get("retries") else ""
    return f"{attempt}{again}" if attempt > 1 or again else ""
