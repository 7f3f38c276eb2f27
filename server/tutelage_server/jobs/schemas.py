"""What is said about jobs over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tutelage.errors import Problem
from tutelage.launcher import Resources
from tutelage_server.store.tables import Event, Job

State = Literal[
    "queued",
    "starting",
    "running",
    "waiting",
    "pausing",
    "paused",
    "cancelling",
    "succeeded",
    "failed",
    "cancelled",
]
JobId = Annotated[str, Meta(max_length=64)]
Short = Annotated[str, Meta(max_length=100, description="Text of at most 100 characters.")]


class Submission(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A job to be run, or, with `sweep`, several."""

    recipe: Annotated[
        dict[str, Any],
        Meta(
            description="A recipe as in a file, but files are `file:ID`, and what other jobs made is `job:ID` or "
            "`job:ID/STAGE`."
        ),
    ]
    name: Annotated[str, Meta(max_length=100, description="The job's name; the recipe's where empty.")] = ""
    launcher: Annotated[str, Meta(max_length=100, description="Where it runs; the server's first where empty.")] = ""
    resources: Annotated[Resources, Meta(description="What it asks for.")] = msgspec.field(default_factory=Resources)
    priority: Annotated[int, Meta(ge=-100, le=100, description="Higher ones come first.")] = 0
    after: Annotated[list[JobId], Meta(max_length=100, description="It begins when these have succeeded.")] = []
    max_retries: Annotated[int, Meta(ge=0, le=100, description="New attempts when a machine fails.")] = 3
    environment: Annotated[
        dict[str, str], Meta(max_length=100, description="Variables of its environment, of the names allowed here.")
    ] = {}
    secrets: Annotated[
        dict[str, str], Meta(max_length=100, description="Variables whose values are shown to nobody.")
    ] = {}
    labels: Annotated[dict[str, str], Meta(max_length=64, description="To list jobs by.")] = {}
    max_usd: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Refuse it (402) when it may cost more; go on by itself only within it."),
    ] = None
    sweep: Annotated[
        dict[str, list[Any]],
        Meta(
            max_length=10,
            description="Values of fields of the recipe (`stages.tune.adapter.rank`): a job for every combination.",
        ),
    ] = {}
    dry_run: Annotated[bool, Meta(description="Say what would become of it; make no job.")] = False


class Progress(msgspec.Struct, kw_only=True):
    """How far a job is."""

    stage: Annotated[str | None, Meta(description="The stage that runs, or ran last.")] = None
    step: Annotated[int | None, Meta(description="Its last step.")] = None
    steps: Annotated[int | None, Meta(description="Its steps in all, where known.")] = None
    loss: Annotated[float | None, Meta(description="The last step's loss.")] = None
    eta_seconds: Annotated[float | None, Meta(description="Until the stage's last step, at this pace.")] = None
    stages: Annotated[list[str], Meta(description="All stages.")] = []
    done: Annotated[list[str], Meta(description="Stages that are done.")] = []


class JobShown(msgspec.Struct, kw_only=True):
    """A job."""

    id: Annotated[str, Meta(examples=["job-0199b2c8a6de7c3f8f1ad0b9f1e2d3c4"])]
    name: Annotated[str, Meta(examples=["support-answers"])]
    state: State
    reason: Annotated[str, Meta(description="Why it is in this state, and what to do.")]
    ended_by: Annotated[str, Meta(description="Who or what ended it.")]
    wanted: Annotated[Literal["run", "pause", "cancel"], Meta(description="What was asked of it last.")]
    launcher: Annotated[str, Meta(examples=["local"])]
    resources: Annotated[dict[str, Any], Meta(description="What it asks for, of each machine.")]
    priority: int
    after: Annotated[list[str], Meta(description="Jobs that must have succeeded before it begins.")]
    labels: dict[str, str]
    sweep: Annotated[str, Meta(description="The sweep that it is of, or empty.")]
    sweep_index: int | None
    retry_of: Annotated[str, Meta(description="The job that it goes on from, or empty.")]
    attempt: Annotated[int, Meta(description="Attempts that were begun.")]
    retries: Annotated[int, Meta(description="Attempts that a machine's failure ended.")]
    max_retries: int
    environment: dict[str, str]
    secrets: Annotated[list[str], Meta(description="Names alone.")]
    progress: Progress
    events: Annotated[int, Meta(description="The number of its last event.")]
    estimate: Annotated[dict[str, Any] | None, Meta(description="Memory, hours and money as they were expected.")]
    usd: Annotated[float, Meta(description="What it may cost at most; what it cost, when it has ended.")]
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    recipe: Annotated[dict[str, Any] | None, Meta(description="As it was submitted; lists leave it out.")] = None


class JobPage(msgspec.Struct, kw_only=True):
    """Jobs, newest first."""

    items: list[JobShown]
    next: Annotated[str | None, Meta(description="The cursor of the next page.")]


class Sweep(msgspec.Struct, kw_only=True):
    """The jobs of a sweep."""

    sweep: str
    jobs: list[JobShown]


class Plan(msgspec.Struct, kw_only=True):
    """What would become of a submission."""

    problems: Annotated[list[Problem], Meta(description="What is to be mended; none when it would be accepted.")]
    notes: list[str]
    estimate: Annotated[dict[str, Any] | None, Meta(description="Of a sweep, its dearest job's; null: not known.")]
    data: Annotated[dict[str, Any], Meta(description="What the data holds, by stage.")]
    jobs: Annotated[int, Meta(description="How many jobs would be made.")]
    max_usd: Annotated[float | None, Meta(description="The most that one may cost; null: not known.")]
    launcher: str


class EventShown(msgspec.Struct, kw_only=True):
    """Something that happened to a job."""

    number: Annotated[int, Meta(description="Counts from 1 without a gap.")]
    at: datetime
    kind: Annotated[str, Meta(examples=["state", "step"])]
    data: dict[str, Any]


class EventPage(msgspec.Struct, kw_only=True):
    """Events of a job, oldest first."""

    items: list[EventShown]
    next: Annotated[int | None, Meta(description="`after` of the next page; null when there is nothing more yet.")]


class Artifact(msgspec.Struct, kw_only=True):
    """A file that a job made."""

    path: Annotated[str, Meta(description="Within the run.", examples=["stages/tune/artifact/adapter_config.json"])]
    bytes: int
    sha256: str


class ArtifactPage(msgspec.Struct, kw_only=True):
    """Files of a job, by path."""

    items: list[Artifact]
    next: str | None


class StageMetrics(msgspec.Struct, kw_only=True):
    """The figures of a stage."""

    name: str
    phase: str
    state: str
    metrics: Annotated[dict[str, float], Meta(description="What it ended with.")]
    series: Annotated[dict[str, list[tuple[int, float]]], Meta(description="(step, value) of each figure.")]


class Metrics(msgspec.Struct, kw_only=True):
    """The figures of a job's stages."""

    stages: list[StageMetrics]


class Difference(msgspec.Struct, kw_only=True):
    """A setting or figure of several jobs, in their order."""

    field: str
    values: list[Any]


class Compared(msgspec.Struct, kw_only=True):
    """Jobs side by side."""

    jobs: list[str]
    settings: Annotated[list[Difference], Meta(description="Settings, versions and data that differ.")]
    metrics: list[Difference]


class Question(msgspec.Struct, kw_only=True):
    """Answers to order, without who gave them, in an order of this person's own."""

    id: str
    number: int
    of: int
    prompt: str
    answers: Annotated[dict[str, str], Meta(description="By letter, `a` first.")]


class RankingDesk(msgspec.Struct, kw_only=True):
    """Where a person is with ranking."""

    stage: str
    person: str
    question: Annotated[Question | None, Meta(description="The next one; null when nothing is left.")]
    left: Annotated[int, Meta(description="Questions that this person has left.")]
    given: Annotated[int, Meta(description="Judgements of all people so far.")]
    wanted: Annotated[int, Meta(description="Judgements after which the job can be resumed.")]
    enough: Annotated[bool, Meta(description="Whether it can be resumed now.")]


class Judgement(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a person says of a question: an order, a comment, or both; or that the last answer is taken back."""

    person: Short
    question: Annotated[str, Meta(max_length=64, description="Its id; needed unless `undo`.")] = ""
    order: Annotated[
        str,
        Meta(
            max_length=200,
            description="Letters from best to worst, `=` between ties: `b a=c d`; or `bad` (all are), or `skip`.",
        ),
    ] = ""
    seconds: Annotated[Annotated[float, Meta(ge=0, le=86400)] | None, Meta(description="How long it took.")] = None
    comment: Annotated[str, Meta(max_length=4000)] = ""
    undo: Annotated[bool, Meta(description="Take this person's last answer back.")] = False
    stage: Annotated[str, Meta(max_length=100, description="The ranking stage, where there are several.")] = ""


def show_job(job: Job, recipe: bool = False) -> JobShown:
    """A job as it is shown; the values of its secrets are in no row."""
    return JobShown(
        id=job.id,
        name=job.name,
        state=job.state,  # type: ignore[arg-type]
        reason=job.reason,
        ended_by=job.ended_by,
        wanted=job.wanted,  # type: ignore[arg-type]
        launcher=job.launcher,
        resources=job.resources,
        priority=job.priority,
        after=job.after,
        labels=job.labels,
        sweep=job.sweep,
        sweep_index=job.sweep_index,
        retry_of=job.retry_of,
        attempt=job.attempt,
        retries=job.retries,
        max_retries=job.max_retries,
        environment=job.environment,
        secrets=job.secrets,
        progress=show_progress(job.progress),
        events=job.events,
        estimate=job.estimate,
        usd=job.usd,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        recipe=job.recipe if recipe else None,
    )


def show_progress(progress: dict[str, Any]) -> Progress:
    """How far a job is, from what its events told."""
    figures = progress.get("figures") or {}
    step, steps, seconds = progress.get("step"), progress.get("steps"), figures.get("seconds")
    known = isinstance(step, int) and isinstance(steps, int) and isinstance(seconds, int | float)
    return Progress(
        stage=progress.get("stage"),
        step=step,
        steps=steps,
        loss=figures.get("loss"),
        eta_seconds=round(max(0, steps - step) * seconds, 1) if known else None,  # type: ignore[operator]
        stages=[
            str(each.get("name", "")) if isinstance(each, dict) else str(each) for each in progress.get("stages", [])
        ],
        done=[str(each) for each in progress.get("done", [])],
    )


def show_event(event: Event) -> EventShown:
    """An event as it is shown."""
    return EventShown(number=event.number, at=event.at, kind=event.kind, data=event.data)
